"""``python -m export.verify``: how far bundles are from the checkpoint that they were made from."""
