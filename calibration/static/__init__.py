"""Static ranges of activations: one for each tensor, measured while the runtime samples pictures."""
