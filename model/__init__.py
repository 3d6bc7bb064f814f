"""Ideogram 4 as plain PyTorch modules, and the reader of its checkpoints."""
