"""``python -m export.build``: checkpoint directory in, bundle out."""
