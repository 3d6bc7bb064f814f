"""A caption drawn as a plan of the picture."""
