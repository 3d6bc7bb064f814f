"""Training of the demo checkpoint: scenes drawn by program, their captions, and the networks that learn them."""
