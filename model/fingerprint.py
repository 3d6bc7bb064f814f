"""Tell one model from another of the same sizes."""

import hashlib
import json
from dataclasses import asdict

import torch

from model.checkpoint import Checkpoint

_SAMPLES = ("input_proj.weight", "embed_image_indicator.weight", "layers.0.attention.o.weight")
"""Small parameters, and one that adapters change as well."""


def fingerprint(checkpoint: Checkpoint) -> str:
    """Sixteen hexadecimal digits of the transformers' configuration and three parameters of each.

    The parameters are compared as float32 values, so that both file layouts of one model give the same digits.
    """
    digest = hashlib.sha256(json.dumps(asdict(checkpoint.transformer), sort_keys=True).encode())
    for stage in ("dit_cond", "dit_uncond"):
        for name in _SAMPLES if stage in checkpoint.sources else ():
            values = checkpoint.sources[stage][name].read()
            digest.update(values.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
