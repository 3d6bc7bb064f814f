"""A graph as a TensorRT plan, and what the plan is made of."""
