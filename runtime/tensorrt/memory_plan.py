"""Which engines are in device memory together. Arithmetic only; nothing is loaded here.

A picture takes three steps: the text encoder once, both transformers in turns at every step, the VAE once, on the
whole picture or in tiles. Levels, from the fastest to the smallest:

- ``resident``: all engines, all the time.
- ``staged``: one step's engines at a time; for each picture every weight is read once.
- ``streamed``: as staged, and of engines that still do not fit a part of the weights stays in host memory; the GPU
  reads it from there whenever the engine runs. Only for engines that were built with weight streaming.
- ``swapped``: one engine at a time. Both transformers' weights are read at every step.

Weights are counted with the sizes of the plans, which hold little else. Activations are those of the profiles that will
run, where it is known what will, else of the profile that needs most.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime.bundle.graph_specs import EngineSet
from runtime.bundle.manifest import FileSpec
from runtime.constants import TILE_GRAPHS
from runtime.errors import BackendError, RequestError, shown

MEMORY = ("auto", "resident", "staged")
"""What a user may ask for: resident; staged or what is smaller; auto for the first that fits."""
STEPS = (("text_encoder",), ("dit_cond", "dit_uncond"), ("vae_encoder", "vae_decoder"), tuple(TILE_GRAPHS.values()))
"""Stages that run together. No picture needs both of the last two: its VAE runs on the whole or on tiles."""
OVERHEAD = 512 << 20
"""Bytes for compiled kernels, CUDA's own structures, a CUDA graph for each context, and the tensors between engines. An
allowance, not measured."""
STREAMED_SHARE = 0.25
"""Of an engine's weights, at least this much stays on the device when it streams the others: not every weight can be
streamed. An allowance, not measured."""
STREAMING_SCRATCH = 512 << 20
"""Bytes for the copies of an engine that streams weights: twice the largest product of the released float8 model. An
allowance: TensorRT tells the number (`weight_streaming_scratch_memory_size`) for a loaded engine only. One that needs
more keeps that much less of its weights on the device."""
MARGIN = 256 << 20
"""Bytes that streaming, which takes all the room that there is, leaves free: for what other programs take while the
engines load. An allowance."""


@dataclass(frozen=True)
class MemoryPlan:
    """What is loaded together."""

    level: str
    groups: tuple[tuple[str, ...], ...]
    """Stages that are on the device at the same time; every stage is in one group."""
    budgets: tuple[tuple[str, int], ...]
    """Bytes of weights on the device, of the stages that keep the others in host memory."""
    needed: int
    """Bytes of device memory, the allowance included."""
    reason: str
    """For the user."""


class MemoryPlanError(BackendError):
    """The engines do not fit into the free memory; the message says what would."""


def plan_memory(
    engines: EngineSet,
    files: Mapping[str, FileSpec],
    stages: Sequence[str],
    free: int,
    wanted: str = "auto",
    activations: Mapping[str, int] | None = None,
) -> MemoryPlan:
    """The first level that fits into `free` bytes.

    Args:
        engines: with the stages and their activations.
        files: of the manifest; the sizes of the plans.
        stages: that will run.
        free: bytes of device memory that nobody has taken.
        wanted: one of `MEMORY`.
        activations: bytes that each stage needs beside its weights; None for the most that its profiles take.

    Raises:
        RequestError: `wanted` is none of `MEMORY`.
        MemoryPlanError: nothing that is allowed fits.
    """
    if wanted not in MEMORY:
        raise RequestError(f"memory is {shown(wanted)}, wanted one of {', '.join(MEMORY)}")
    weights = {stage: files[engines.graphs[stage].plan].size for stage in stages}
    scratch = {stage: engines.graphs[stage].activation_bytes for stage in stages} | dict(activations or {})
    plans = [] if wanted == "staged" else [_whole("resident", (tuple(stages),), weights, scratch)]
    if wanted != "resident":
        steps = _steps(stages)
        plans.append(_whole("staged", steps, weights, scratch))
        if engines.weight_streaming:
            plans.append(_streamed(steps, weights, scratch, free))
        plans.append(_whole("swapped", tuple((stage,) for stage in stages), weights, scratch))
    for plan in plans:
        if plan.needed <= free:
            return MemoryPlan(plan.level, plan.groups, plan.budgets, plan.needed, _reason(plan, plans, weights, free))
    raise MemoryPlanError(_refusal(engines, plans, free, wanted))


def _steps(stages: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The stages by step, without steps that have none."""
    steps = (tuple(stage for stage in step if stage in stages) for step in STEPS)
    return tuple(step for step in steps if step)


def _whole(
    level: str, groups: tuple[tuple[str, ...], ...], weights: dict[str, int], scratch: dict[str, int]
) -> MemoryPlan:
    """All weights of a group on the device; engines run in turns, so their activations share the largest's space."""
    sizes = [sum(weights[stage] for stage in group) + max(scratch[stage] for stage in group) for group in groups]
    return MemoryPlan(level, groups, (), max(sizes) + OVERHEAD, "")


def _streamed(
    steps: tuple[tuple[str, ...], ...], weights: dict[str, int], scratch: dict[str, int], free: int
) -> MemoryPlan:
    """Of groups that do not fit whole, the same share of every engine's weights on the device.

    Such groups need room for the copies as well, and leave a margin; both count as needed.
    """
    needed, budgets = 0, []
    for group in steps:
        total, room = sum(weights[stage] for stage in group), max(scratch[stage] for stage in group) + OVERHEAD
        if total + room > free:
            room += STREAMING_SCRATCH + MARGIN
            share = max(STREAMED_SHARE, (free - room) / total)
            parts = [(stage, int(share * weights[stage])) for stage in group]
            budgets += parts
            total = sum(part for _, part in parts)
        needed = max(needed, total + room)
    return MemoryPlan("streamed", steps, tuple(budgets), needed, "")


def _reason(chosen: MemoryPlan, plans: Sequence[MemoryPlan], weights: dict[str, int], free: int) -> str:
    refused = "".join(f", {plan.level} needs {_gb(plan.needed)}" for plan in plans[: plans.index(chosen)])
    text = f"{chosen.level}: needs {_gb(chosen.needed)} of {_gb(free)} free{refused}"
    if chosen.budgets:
        left = sum(weights[stage] - budget for stage, budget in chosen.budgets)
        text += f"; {_gb(left)} of weights stay in host memory"
    if chosen.level == "swapped" and {"dit_cond", "dit_uncond"} <= set(weights):
        text += f"; every step reads {_gb(weights['dit_cond'] + weights['dit_uncond'])} of weights"
    return text


def _refusal(engines: EngineSet, plans: Sequence[MemoryPlan], free: int, wanted: str) -> str:
    levels = ", ".join(f"{_gb(plan.needed)} {plan.level}" for plan in plans)
    text = f"the {engines.label} need {levels}, and {_gb(free)} of device memory are free"
    if wanted == "resident":
        return f"{text}; choose --memory staged or auto, or close other programs that use the GPU"
    streaming = "" if engines.weight_streaming else " or with --weight-streaming"
    return f"{text}; close other programs that use the GPU, or build them for smaller pictures (--max-size){streaming}"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
