"""A campaign against the real Triton server: clients of every kind for as long as one likes."""
