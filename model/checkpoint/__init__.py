"""A checkpoint directory: its files, tensors, adapters and configuration."""
