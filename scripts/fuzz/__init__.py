"""``python -m scripts.fuzz``: broken inputs for everything that the toolkit reads."""
