"""The real Triton server without docker, and a client for it."""
