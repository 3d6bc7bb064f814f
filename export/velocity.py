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
from calibration.reference import torch_pipeline
from model.checkpoint.directory import Checkpoint
from runtime.graph import Graph
from runtime.sampling.noise import randn

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
    recorders = {stage: _Recorder(stage, pipeline.graphs[stage]) for stage in TRANSFORMERS if stage in pipeline.graphs}
    pipeline.graphs.update(recorders)
    samples: list[Sample] = []
    for plan in plans:
        text = pipeline.encode(np.array([plan.token_ids], dtype=np.int64))
        rows, columns = plan.grid
        noise = randn((1, rows * columns, checkpoint.transformer.in_channels), plan.seed)
        for _ in pipeline.denoise(text, noise, plan.grid, plan.steps, plan.unconditional):
            pass
        for recorder in recorders.values():
            calls = recorder.take()
            samples += (calls[i] for i in sorted({round(i) for i in np.linspace(0, len(calls) - 1, levels)}))
    return samples


class _Recorder:
    """A graph that keeps its calls."""

    def __init__(self, stage: str, graph: Graph) -> None:
        self.stage, self.graph = stage, graph
        self.calls: list[Sample] = []

    def __call__(self, **feeds: np.ndarray) -> np.ndarray:
        velocity = self.graph(**feeds)
        tensors = {name: torch.from_numpy(np.require(value, requirements="W")) for name, value in feeds.items()}
        self.calls.append(Sample(self.stage, float(feeds["timestep"][0]), tensors, torch.from_numpy(velocity)))
        return velocity

    def take(self) -> list[Sample]:
        """The calls since the last time."""
        calls, self.calls = self.calls, []
        return calls


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
