"""Measure activation ranges while the runtime samples pictures from prompts."""

import contextlib
import sys
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

import numpy as np
from torch import Tensor

from calibration.origin import Model, Prompts
from calibration.plans import make_plans
from calibration.points import STAGES, hooked, names_of, tensor_names
from calibration.prompts import prompts_sha256
from calibration.reference import check_device, torch_pipeline
from calibration.static.algorithms import tensor_range
from calibration.static.histogram import Histogram, histogram_of
from calibration.static.ranges import Ranges, check_algorithm
from calibration.static.state import State, StateError, StateFile, first_state
from model.checkpoint.directory import Checkpoint
from model.checkpoint.fingerprint import fingerprint
from model.checkpoint.hub import model_name
from runtime.errors import NonFiniteError
from runtime.pipeline import Pipeline
from runtime.plan import Plan
from runtime.progress import Progress

DEFAULT_ALGORITHM = "max"
"""Static ranges must hold for prompts that were not measured: this one leaves most room. e4m3 is a floating-point
format, so room costs no precision as long as small values stay clear of its subnormal numbers."""
DEFAULT_PERCENTILE = 99.99


def calibrate(
    checkpoint: Checkpoint,
    prompts: Sequence[str],
    *,
    preset: str | None = None,
    steps: int | None = None,
    width: int | None = None,
    height: int | None = None,
    algorithm: str = DEFAULT_ALGORITHM,
    percentile: float = DEFAULT_PERCENTILE,
    device: str = "cpu",
    seed: int = 0,
    state: Path | None = None,
    quiet: bool = False,
) -> Ranges:
    """Measure the ranges of a checkpoint's transformers. All arguments are checked before weights are loaded.

    Args:
        checkpoint: whose transformers run in float32. At most both transformers are in memory at a time: the text
            encoder goes before they come.
        prompts: plain text or Ideogram 4 JSON captions.
        preset: one of `runtime.sampling.schedule.PRESETS`; None for the model's default, unless `steps` is given.
        steps: number of steps instead of a preset.
        width: pixels; None for the model's default size.
        height: pixels; None for the model's default size.
        algorithm: one of `ranges.ALGORITHMS`. The ranges of all are measured; this one is to be used.
        percentile: of the magnitudes, in (0, 100].
        device: ``cpu`` or ``cuda``.
        seed: of the first prompt's noise; prompt i has ``seed + i``.
        state: file to keep what is measured after each prompt, and to continue from if it is of the same calibration.
            The caller removes it when the ranges are safe. None to keep nothing.
        quiet: no progress bar and no messages.

    Raises:
        ValueError: an argument is out of range, or a prompt is empty or too long.
        CheckpointError: a weight is damaged.
        RuntimeError: the device is not there.
        NonFiniteError: an activation is NaN or infinite.
        RangesError: a tensor is zero everywhere, so it has no range.
    """
    check_algorithm(algorithm, percentile)
    check_device(device)
    plans = make_plans(checkpoint, prompts, preset, steps, width, height, seed)
    first = plans[0]
    model = Model(model_name(checkpoint.directory), fingerprint(checkpoint))
    hashed = Prompts(len(prompts), prompts_sha256(prompts))
    measurement = {
        "preset": first.sampling.preset,
        "steps": len(first.steps),
        "width": first.width,
        "height": first.height,
        "seed": seed,
    }
    identity = {"fingerprint": model.fingerprint, "prompts": hashed.sha256, **measurement}
    measured = _measure(checkpoint, plans, device, StateFile(state, identity), quiet)
    tensors = {name: tensor_range(histogram, percentile) for name, histogram in measured.histograms.items()}
    return Ranges(model, algorithm, percentile, hashed, **measurement, tensors=tensors)


def _measure(checkpoint: Checkpoint, plans: list[Plan], device: str, kept: StateFile, quiet: bool) -> State:
    state = _first_or_kept(kept, tensor_names(checkpoint), len(plans), quiet)
    try:
        texts = _encode(checkpoint, plans[state.done :], device, quiet)
        pipeline = torch_pipeline(checkpoint, STAGES if texts else (), device)
        with _bar("calibrating", state.done, len(plans), quiet) as bar:
            for plan, text in zip(plans[state.done :], texts, strict=True):
                after = state.after(record(pipeline, plan, text))
                kept.save(after)
                state = after
                bar.update()
    except KeyboardInterrupt:
        if kept.path and state.done:
            _say(f"{state.done} of {len(plans)} prompts are kept in {kept.path}; the same command continues", quiet)
        raise
    return state


def _first_or_kept(kept: StateFile, names: list[str], prompts: int, quiet: bool) -> State:
    try:
        state = kept.load(names, prompts)
    except StateError as error:
        _say(f"{error}; starting anew", quiet)
        state = None
    if state is None:
        return first_state(names)
    _say(f"continuing after {state.done} of {prompts} prompts, kept in {kept.path}", quiet)
    return state


def _say(message: str, quiet: bool) -> None:
    if not quiet:
        print(message, file=sys.stderr)


def _encode(checkpoint: Checkpoint, plans: list[Plan], device: str, quiet: bool) -> list[np.ndarray]:
    """Text features (1, T, E) float32 of each plan's prompt; the text encoder is gone from memory afterwards."""
    if not plans:
        return []
    pipeline = torch_pipeline(checkpoint, ("text_encoder",), device)
    with _bar("encoding", 0, len(plans), quiet) as bar:
        texts = []
        for plan in plans:
            texts.append(pipeline.text(plan))
            bar.update()
    return texts


def record(pipeline: Pipeline, plan: Plan, text: np.ndarray) -> dict[str, Histogram]:
    """Sample one plan with the transformers of a `torch_pipeline` and return the histograms of all their tensors.

    Args:
        pipeline: has a `TorchGraph` for each transformer.
        plan: of one picture.
        text: (1, T, E) float32, the encoded prompt.
    """
    histograms: dict[str, Histogram] = {}

    def add(name: str, x: Tensor) -> None:
        histogram = histogram_of(x)
        if not isfinite(histogram.amax):
            raise NonFiniteError(f"{name} has NaN or infinite values with the prompt {plan.prompt!r}")
        histograms[name] = histograms[name] + histogram if name in histograms else histogram

    with contextlib.ExitStack() as hooks:
        for stage in STAGES:
            if stage in pipeline.graphs:
                module = pipeline.graphs[stage].module
                hooks.enter_context(hooked(module, stage, add, names_of(stage, len(module.layers))))
        for _ in pipeline.trajectory(plan, text=text):
            pass
    return histograms


def _bar(description: str, done: int, total: int, quiet: bool) -> Progress:
    return Progress(description, total, "prompt", done=done, quiet=quiet)
