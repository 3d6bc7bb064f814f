"""Checkpoint directory in, bundle out."""
