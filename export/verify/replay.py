"""Run a checkpoint and its bundles on the same plans and compare what they give.

Two trajectories drift apart however small the cause, so a picture alone does not say how good a graph is. Every call
that the reference makes is therefore recorded, inputs and output, and a bundle's graphs are run on those very inputs:
the transformers get the reference's text features and the reference's latents of each step, the VAE decoder the
reference's last latents, and no error is passed on. Only then does the bundle sample the pictures by itself.

The time is part of those inputs. Bundles may round it to bfloat16, as the PyTorch pipelines in bfloat16 do, and that
is a property of the sampler, not an error of a graph. The reference therefore samples once for each type of time
among the bundles, and a bundle is compared, graph by graph and picture by picture, with the reference of its own type.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from calibration.reference import recording, torch_pipeline
from export.verify.quality import GridCheck, PictureError, VectorError, grid_checks, picture_error, vector_error
from model.checkpoint.directory import Checkpoint
from runtime.errors import NonFiniteError
from runtime.graph import Call, Graph
from runtime.pipeline import Pipeline
from runtime.plan import Plan

TRANSFORMERS = ("dit_cond", "dit_uncond")
STAGES = ("text_encoder", *TRANSFORMERS, "vae_decoder")
Calls = dict[str, list[Call]]
"""By stage, in order: one of the text encoder and the decoder, one at each step of a transformer."""
Advance = Callable[[], object]
"""Called after each sampling step."""


@dataclass(frozen=True)
class Reference:
    """What the reference did for one plan."""

    calls: Calls
    latents: np.ndarray
    """(1, N, C) float32 after the last step."""
    image: np.ndarray
    """(H, W, 3) uint8."""


@dataclass(frozen=True)
class Picture:
    """A bundle's picture next to the reference's."""

    image: np.ndarray
    """(H, W, 3) uint8."""
    error: PictureError
    latents: VectorError
    """Of the last latents."""
    grid: tuple[GridCheck, ...]


@dataclass(frozen=True)
class Measured:
    """What was measured of a bundle."""

    graphs: dict[str, list[list[VectorError | PictureError]]]
    """Stage -> plan -> call: pictures of the VAE decoder, vectors of the others."""
    pictures: list[Picture]
    """One for each plan."""


def sample(
    checkpoint: Checkpoint, plans: Sequence[Plan], times: Iterable[str], device: str, advance: Advance
) -> dict[str, list[Reference]]:
    """Sample the plans with the checkpoint's modules in float32, once for each type of time.

    The text encoder is gone from memory before the transformers come, and they before the decoder.

    Args:
        checkpoint: the reference.
        plans: of one picture each.
        times: types to round the time to, ``float32`` or ``bfloat16``.
        device: ``cpu`` or ``cuda``.
        advance: called after each step.
    """
    # PyTorch lets cuDNN round to TF32 unless told otherwise; this is a float32 reference.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        texts = _encode(checkpoint, plans, device)
        denoised = _denoise(checkpoint, plans, texts, times, device, advance)
        decoder = torch_pipeline(checkpoint, ("vae_decoder",), device)
        return {
            time: [_decode(decoder, plan, *run) for plan, run in zip(plans, runs, strict=True)]
            for time, runs in denoised.items()
        }


def _encode(checkpoint: Checkpoint, plans: Sequence[Plan], device: str) -> list[Calls]:
    pipeline = torch_pipeline(checkpoint, ("text_encoder",), device)
    texts: list[Calls] = [{} for _ in plans]
    for plan, calls in zip(plans, texts, strict=True):
        recording(pipeline, calls).text(plan)
    return texts


def _denoise(
    checkpoint: Checkpoint,
    plans: Sequence[Plan],
    texts: Sequence[Calls],
    times: Iterable[str],
    device: str,
    advance: Advance,
) -> dict[str, list[tuple[Calls, np.ndarray]]]:
    """For each type of time and plan the calls so far and the last latents."""
    pipeline = torch_pipeline(checkpoint, TRANSFORMERS, device)
    runs: dict[str, list[tuple[Calls, np.ndarray]]] = {}
    for time in times:
        pipeline.manifest = replace(pipeline.manifest, timestep_dtype=time)
        runs[time] = []
        for plan, text in zip(plans, texts, strict=True):
            calls = dict(text)
            trajectory = recording(pipeline, calls).trajectory(plan, text=text["text_encoder"][0].output)
            *_, latents = _counted(trajectory, advance)
            runs[time].append((calls, latents))
    return runs


def _counted(trajectory: Iterable[np.ndarray], advance: Advance) -> Iterator[np.ndarray]:
    for latents in trajectory:
        advance()
        yield latents


def _decode(pipeline: Pipeline, plan: Plan, calls: Calls, latents: np.ndarray) -> Reference:
    image = recording(pipeline, calls).decode(latents, plan.grid)[0]
    return Reference(calls, latents, image)


def load(directory: Path, plans: Sequence[Plan], device: str, verify: str) -> Pipeline:
    """Load what the plans need of a bundle; `verify` is that of `Pipeline.load`.

    Raises:
        BundleError: the bundle is damaged.
        RuntimeError: the backend cannot run it; the message names the bundle.
    """
    unconditional = any(plan.needs_unconditional_graph for plan in plans)
    try:
        return Pipeline.load(directory, device=device, verify=verify, unconditional=unconditional)
    except RuntimeError as error:
        raise RuntimeError(f"the bundle {directory}: {error}") from error


def measure(
    directory: Path, plans: Sequence[Plan], samples: Sequence[Reference], device: str, advance: Advance
) -> Measured:
    """Compare a bundle with the reference's samples of the same plans and type of time.

    Raises:
        RuntimeError: as for `load`, or a graph gave NaN or infinity; the message names the bundle.
    """
    pipeline = load(directory, plans, device, verify="off")
    try:
        graphs: dict[str, list] = {stage: [] for stage in STAGES if stage in pipeline.graphs}
        pictures = []
        for plan, wanted in zip(plans, samples, strict=True):
            for stage, errors in graphs.items():
                errors.append([_replay(stage, pipeline.graphs[stage], call) for call in wanted.calls[stage]])
            pictures.append(_picture(pipeline, plan, wanted, advance))
    except RuntimeError as error:
        raise RuntimeError(f"the bundle {directory}: {error}") from error
    return Measured(graphs, pictures)


def _replay(stage: str, graph: Graph, call: Call) -> VectorError | PictureError:
    got = graph(**call.feeds)
    if not np.isfinite(got).all():
        raise NonFiniteError(f"{stage} gave NaN or infinite values for the reference's inputs")
    return picture_error(got[0], call.output[0]) if got.dtype == np.uint8 else vector_error(got, call.output)


def _picture(pipeline: Pipeline, plan: Plan, wanted: Reference, advance: Advance) -> Picture:
    latents = wanted.latents

    def keep(done: int, total: int, after: np.ndarray) -> None:
        nonlocal latents
        latents = after
        advance()

    image = pipeline.run(plan, on_step=keep).images[0]
    error, grid = picture_error(image, wanted.image), grid_checks(image, wanted.image)
    return Picture(image, error, vector_error(latents, wanted.latents), grid)
