"""The command ``trt-generate``."""
