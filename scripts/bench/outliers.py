"""Copies of a checkpoint that compute the same, but have channels with outliers, as large transformers do."""

from dataclasses import replace

import torch
from torch import Tensor

from calibration.points import STAGES
from model.checkpoint.directory import Checkpoint
from model.checkpoint.sources import Scaled, Sources

_CHANNELS = 2
"""Of each product's input that become large."""


def with_outliers(checkpoint: Checkpoint, factor: float, seed: int = 1) -> Checkpoint:
    """Two channels of the input of each product of the transformers' blocks become `factor` times as large, and the
    weight's columns as much smaller: by the norm in front (qkv, w1 and w3), rows of w3 (w2) and rows of v (o)."""
    changed = {stage: _planted(checkpoint, stage, factor, seed) for stage in STAGES if stage in checkpoint.sources}
    return replace(checkpoint, sources=checkpoint.sources | changed)


def _planted(checkpoint: Checkpoint, stage: str, factor: float, seed: int) -> Sources:
    sources, config = dict(checkpoint.sources[stage]), checkpoint.transformer
    random = torch.Generator().manual_seed(seed)

    def channels(size: int) -> Tensor:
        factors = torch.ones(size)
        factors[torch.randperm(size, generator=random)[:_CHANNELS]] = factor
        return factors

    for layer in range(config.num_layers):
        prefix = f"layers.{layer}."

        def scale(name: str, rows: Tensor | None = None, columns: Tensor | None = None, prefix: str = prefix) -> None:
            key = f"{prefix}{name}.weight"
            sources[key] = Scaled(sources[key], rows, columns)

        for norm, readers in (
            ("attention_norm1", ("attention.qkv",)),
            ("ffn_norm1", ("feed_forward.w1", "feed_forward.w3")),
        ):
            factors = channels(config.hidden_size)
            scale(norm, rows=factors)
            for reader in readers:
                scale(reader, columns=1 / factors)
        factors = channels(config.intermediate_size)
        scale("feed_forward.w3", rows=factors)
        scale("feed_forward.w2", columns=1 / factors)
        factors = channels(config.hidden_size)
        scale("attention.qkv", rows=torch.cat((torch.ones(2 * config.hidden_size), factors)))
        scale("attention.o", columns=1 / factors)
    return sources
