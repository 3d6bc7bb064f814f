"""Tell one model from another of the same sizes."""

import hashlib
import json
from dataclasses import asdict

import torch

from model.checkpoint.directory import Checkpoint
from model.checkpoint.lora import without_loras

_SAMPLES = ("input_proj.weight", "embed_image_indicator.weight", "layers.0.attention.o.weight")
"""Small parameters, and one that fine-tuning changes as well."""


def fingerprint(checkpoint: Checkpoint) -> str:
    """Sixteen hexadecimal digits of the transformers' configuration, three parameters of each, and folded LoRAs.

    The parameters are compared as float32 values, so that both file layouts of one model give the same digits. LoRAs
    count by their files' hashes, scales and targets: sums of products differ in the last bit from one CPU to another.
    """
    bare = without_loras(checkpoint)
    digest = hashlib.sha256(json.dumps(asdict(checkpoint.transformer), sort_keys=True).encode())
    for stage in ("dit_cond", "dit_uncond"):
        for name in _SAMPLES if stage in checkpoint.sources else ():
            values = bare.sources[stage][name].read()
            digest.update(values.contiguous().view(torch.uint8).numpy().tobytes())
    for lora in checkpoint.loras:
        digest.update(json.dumps([lora.sha256, lora.scale, lora.target]).encode())
    return digest.hexdigest()[:16]
