"""Measurements: speed, memory, size and accuracy, ours beside the peers'."""
