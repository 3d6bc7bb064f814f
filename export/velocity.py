"""Velocities at fixed inputs, to compare one way of computing them with another.

Pictures diverge: a small error in one step moves the inputs of all later ones. So the transformers are compared where
both get the same inputs, namely the latents along the float32 trajectory of a picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from calibration.plans import make_plans
from calibration.reference import recording, torch_pipeline
from model.checkpoint.directory import Checkpoint
from runtime.graph import Call

TRANSFORMERS = ("dit_cond", "dit_uncond")


@dataclass(frozen=True)
class Sample:
    """One call of a transformer and what it gives in float32."""

    stage: str
    t: float
    """Time in [0, 1]; 0 is noise."""
    feeds: dict[str, Tensor]
    velocity: Tensor
    """(B, N, C) float32."""


def trajectory_samples(
    checkpoint: Checkpoint, prompts: Sequence[str], preset: str, levels: int, seed: int = 0
) -> list[Sample]:
    """The calls of both transformers at `levels` noise levels, evenly spread over the steps, for each prompt.

    Prompt i starts from the noise of ``seed + i``. Raises ValueError for a prompt or preset that the model does not
    take.
    """
    plans = make_plans(checkpoint, prompts, preset, None, None, None, seed)
    pipeline = torch_pipeline(checkpoint, ("text_encoder", *TRANSFORMERS), "cpu")
    samples: list[Sample] = []
    for plan in plans:
        calls: dict[str, list[Call]] = {}
        for _ in recording(pipeline, calls).trajectory(plan):
            pass
        for stage in TRANSFORMERS:
            made = calls.get(stage, [])
            chosen = sorted({round(i) for i in np.linspace(0, len(made) - 1, levels)}) if made else []
            samples += (_sample(stage, made[i]) for i in chosen)
    return samples


def _sample(stage: str, call: Call) -> Sample:
    feeds = {name: torch.from_numpy(np.require(value, requirements="W")) for name, value in call.feeds.items()}
    return Sample(stage, float(call.feeds["timestep"][0]), feeds, torch.from_numpy(call.output))


def velocity_errors(module: nn.Module, stage: str, samples: Sequence[Sample]) -> list[float]:
    """``|v - reference| / |reference|`` of a module for each of the stage's samples."""
    errors = []
    with torch.no_grad():
        for sample in samples:
            if sample.stage == stage:
                difference = module(**sample.feeds) - sample.velocity
                errors.append(float(difference.norm() / sample.velocity.norm()))
    return errors


def rms(errors: Sequence[float]) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(np.square(errors))))
