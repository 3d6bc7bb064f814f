"""The file with which a bundle proves itself: what each graph gives for small inputs, and how far one may be off."""
