"""``python -m scripts.interrupted``: kill commands at any moment, and fill the disk under them."""
