"""What runs inside Triton Inference Server: requests to plans, plans to pictures, pictures to responses.

Only `serving.unary`, `serving.stream` and `serving.wire` know Triton; the rest is numpy and the runtime, and is tested
without a server. ``python -m export.triton`` copies this package and the runtime into a model repository.
"""
