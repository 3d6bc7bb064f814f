"""A bundle to a model repository for Triton Inference Server. No torch: it runs wherever the bundle is."""
