"""How long a measurement of channel maxima will take, and how much memory: said before it starts."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from calibration.points import STAGES, TEXT_ENCODER, layers_of, module_prefix, quantized_stages
from model.checkpoint.directory import Checkpoint
from runtime.plan import Plan

_PROCESS_BYTES = 1 << 30
"""PyTorch and the tokenizer."""
_COLUMNS = 1024
"""Of the product that is timed."""


@dataclass(frozen=True)
class Work:
    """An estimate."""

    seconds: float
    memory: int
    """Bytes, at the peak."""

    def __str__(self) -> str:
        minutes = self.seconds / 60
        duration = f"{self.seconds:.0f} seconds" if minutes < 2 else f"{minutes:.0f} minutes"
        return f"about {duration} and {self.memory / 1e9:.1f} GB of memory"


def estimate(checkpoint: Checkpoint, plans: Sequence[Plan], done: int, device: str) -> Work:
    """What is left of a measurement, from the time that one block's weights and one product take here.

    The first block of the conditional transformer is read for it.
    """
    sizes = {stage: _weights(checkpoint, stage) for stage in quantized_stages(checkpoint)}
    inside = [name for name in checkpoint.sources["dit_cond"] if name.startswith(module_prefix("dit_cond", 0))]
    started = time.perf_counter()
    values = [checkpoint.sources["dit_cond"][name].read().bfloat16() for name in inside]
    read = (time.perf_counter() - started) / sum(value.numel() for value in values)
    tokens = {TEXT_ENCODER: 0, "dit_cond": 0, "dit_uncond": 0}
    for plan in plans:
        image, text = plan.grid[0] * plan.grid[1], len(plan.token_ids)
        tokens[TEXT_ENCODER] += text
        tokens["dit_cond"] += image + text
        tokens["dit_uncond"] += image
    flop = _seconds_per_operation(max(values, key=torch.numel), tokens["dit_cond"] // len(plans), device)
    steps = len(plans[0].steps)
    passes = {stage: steps + 1 - max(done, 1) for stage in STAGES} | {TEXT_ENCODER: 1 if not done else 0}
    seconds = sum(passes[stage] * size * (read + 2 * tokens[stage] * flop) for stage, size in sizes.items())
    return Work(seconds, streaming_bytes(checkpoint))


def streaming_bytes(checkpoint: Checkpoint) -> int:
    """Peak memory of running the text encoder and the transformers block by block.

    One block in bfloat16, its largest weight in float32, and what is outside the blocks; a small model takes less.
    """
    stages = quantized_stages(checkpoint)
    block = max(_weights(checkpoint, stage) // layers_of(checkpoint, stage) for stage in stages)
    weight = max(
        _numel(source.shape)
        for stage in stages
        for name, source in checkpoint.sources[stage].items()
        if ".layers." in f".{name}"
    )
    return _PROCESS_BYTES + 2 * block + 4 * weight + _rest(checkpoint)


def _weights(checkpoint: Checkpoint, stage: str) -> int:
    """Weights that each token is multiplied with."""
    return sum(_numel(source.shape) for name, source in checkpoint.sources[stage].items() if ".layers." in f".{name}")


def _rest(checkpoint: Checkpoint) -> int:
    """Bytes of what stays in memory: the larger of the text encoder's and the transformers' parts outside blocks."""
    sizes = {
        stage: 2 * (sum(_numel(s.shape) for s in checkpoint.sources[stage].values()) - _weights(checkpoint, stage))
        for stage in quantized_stages(checkpoint)
    }
    return max(sizes[TEXT_ENCODER], sum(size for stage, size in sizes.items() if stage != TEXT_ENCODER))


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _seconds_per_operation(weight: torch.Tensor, tokens: int, device: str) -> float:
    rows = weight[:_COLUMNS].to(device)
    x = torch.ones((max(tokens, 1), rows.shape[1]), dtype=rows.dtype, device=device)
    F.linear(x, rows)  # the first call prepares kernels
    started = time.perf_counter()
    float(F.linear(x, rows).sum())
    return (time.perf_counter() - started) / (2 * len(x) * rows.numel())
