"""Activation ranges of the diffusion transformers, measured while the runtime samples pictures."""
