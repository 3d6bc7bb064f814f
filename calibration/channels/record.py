"""Measure channel maxima while the runtime samples pictures, in little memory.

All prompts go through each block together (`calibration.streaming`), so the weights of a large model are read once for
each step and not for each prompt.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from calibration.channels.file import Channels, Measured
from calibration.channels.progress import Progressed, Store
from calibration.channels.work import estimate
from calibration.origin import Model, Prompts
from calibration.plans import make_plans
from calibration.points import STAGES, TEXT_ENCODER, hooked, inputs_of, layers_of
from calibration.prompts import prompts_sha256
from calibration.reference import TorchGraph, check_device, manifest_of, prompt_encoder
from calibration.streaming import Parties, loaded
from model.checkpoint.directory import Checkpoint
from model.checkpoint.fingerprint import fingerprint
from model.checkpoint.hub import model_name
from runtime.errors import NonFiniteError
from runtime.pipeline import Pipeline
from runtime.plan import Plan
from runtime.progress import Progress

STEPS, PROMPTS = 2, 4
"""Noise levels and prompts by default. More of either leaves the error of int8 on the demo as it is; docs/accuracy.md
has the table."""
SIDE = 256
"""Pixels on each side by default, or the model's own default size if that is smaller."""


def measure_channels(
    checkpoint: Checkpoint,
    prompts: Sequence[str],
    *,
    steps: int = STEPS,
    width: int | None = None,
    height: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    state: Path | None = None,
    quiet: bool = False,
) -> Channels:
    """Measure the channel maxima of a checkpoint's text encoder and transformers.

    Args:
        checkpoint: what is measured, in float32 if memory allows, else block by block with products in bfloat16.
        prompts: plain text or JSON captions.
        steps: of the Euler steps from noise to picture.
        width: pixels; None for `SIDE`.
        height: pixels; None for `SIDE`.
        device: ``cpu`` or ``cuda``.
        seed: of the first prompt's noise; prompt i has ``seed + i``.
        state: file to keep what is measured after each step, and to continue from if it is of the same measurement.
            The caller removes it when the maxima are safe. None to keep nothing.
        quiet: no progress bar and no messages.

    Raises:
        ValueError: an argument is out of range, or a prompt is empty or too long.
        CheckpointError: a weight is damaged.
        RuntimeError: the device is not there.
        NonFiniteError: an activation is NaN or infinite.
    """
    check_device(device)
    side = min(SIDE, manifest_of(checkpoint).sizes.default)
    plans = make_plans(checkpoint, prompts, None, steps, width or side, height or side, seed)
    first, hashed = plans[0], Prompts(len(prompts), prompts_sha256(prompts))
    model = Model(model_name(checkpoint.directory), fingerprint(checkpoint))
    measured = Measured(model, hashed, steps, first.width, first.height, seed)
    store = Store(state, measured)
    kept = store.load(quiet) or Progressed()
    if not quiet:
        print(f"calibrating: {estimate(checkpoint, plans, kept.done, device)}", file=sys.stderr)
    total = 1 + steps
    with Progress("calibrating", total, "step", done=kept.done, quiet=quiet) as bar:
        for further in _advance(checkpoint, plans, kept, device):
            store.save(further)
            kept = further
            bar.update()
    return Channels(measured, kept.maxima)


def _advance(checkpoint: Checkpoint, plans: Sequence[Plan], kept: Progressed, device: str) -> Iterator[Progressed]:
    """What is measured after the text encoder, and after each step."""
    if not kept.done:
        parties = Parties(len(plans))
        with _watched(checkpoint, (TEXT_ENCODER,), device, parties, plans) as (pipeline, maxima):
            texts = parties.run([partial(pipeline.text, plan) for plan in plans])
            noise = [pipeline.noise(plan) for plan in plans]
        kept = Progressed(1, texts, noise, maxima)
        del pipeline
        yield kept
    if kept.done > len(plans[0].steps):
        return
    parties = Parties(len(plans))
    with _watched(checkpoint, STAGES, device, parties, plans, kept.maxima) as (pipeline, maxima):
        for step in range(kept.done - 1, len(plans[0].steps)):
            jobs = [
                partial(_step, pipeline, plan, text, latents, step)
                for plan, text, latents in zip(plans, kept.texts, kept.latents, strict=True)
            ]
            kept = Progressed(step + 2, kept.texts, parties.run(jobs), dict(maxima))
            yield kept


def _step(pipeline: Pipeline, plan: Plan, text: np.ndarray, latents: np.ndarray, step: int) -> np.ndarray:
    (after,) = pipeline.denoise(text, latents, plan.grid, [plan.steps[step]], plan.unconditional)
    return after


@contextlib.contextmanager
def _watched(
    checkpoint: Checkpoint,
    stages: Sequence[str],
    device: str,
    parties: Parties,
    plans: Sequence[Plan],
    known: dict[str, Tensor] | None = None,
) -> Iterator[tuple[Pipeline, dict[str, Tensor]]]:
    """A pipeline of stages that are streamed if they are large, and the maxima, which grow while it runs."""
    maxima = dict(known or {})

    def add(name: str, x: Tensor) -> None:
        found = x.detach().float().abs().flatten(0, -2).amax(dim=0).cpu()
        if not torch.isfinite(found).all():
            raise NonFiniteError(f"{name} has NaN or infinite values with one of {len(plans)} prompts")
        maxima[name] = torch.maximum(maxima[name], found) if name in maxima else found

    stages = [stage for stage in stages if stage in checkpoint.sources]
    modules = {stage: loaded(checkpoint, stage, device, parties, torch.bfloat16) for stage in stages}
    graphs = {stage: TorchGraph(module, device) for stage, module in modules.items()}
    with contextlib.ExitStack() as hooks:
        for stage, module in modules.items():
            hooks.enter_context(hooked(module, stage, add, inputs_of(stage, layers_of(checkpoint, stage))))
        yield Pipeline(manifest_of(checkpoint), graphs, prompt_encoder(checkpoint), "torch", device), maxima
