"""The largest magnitude of each channel of what enters products: what int8 needs to smooth them."""
