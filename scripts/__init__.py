"""Commands for those who work on the project; run from a checkout as ``python -m scripts.…``."""
