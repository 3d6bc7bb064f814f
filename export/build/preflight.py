"""What a build needs beside what is finished, said and checked before it starts."""

import shutil
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from calibration.channels.work import streaming_bytes
from export.atomic_directory import why_not_linked
from export.build.finished.stock import Found, Stock
from export.build.running import finished_jobs
from export.build.variant import Variant
from export.build.weight_sizes import linked_bytes, scratch_bytes, weight_bytes
from export.graph.records import stage_of
from export.measurements import Measurements
from export.selftest.products import peak_bytes
from model.checkpoint.directory import Checkpoint
from runtime.backend.machine import look
from runtime.host_memory import available_memory

_SPARE_BYTES = 64 << 20
"""Disk space wanted beyond the weights: graphs, kernels, tokenizer, manifest."""
_PROCESS_BYTES = 1 << 30
"""Memory of a build beside the weights: PyTorch, the graph, TensorRT. Measured 0.6 to 0.9 GB."""
_ENGINE_FACTOR = {"rtx": 1.2, "tensorrt": 5.0}
"""Memory of an engine's build in multiples of its weights. TensorRT-RTX 1.7.1: measured 1.1. TensorRT: users of
NVIDIA/TensorRT-Model-Connect report 148 GB for a plan of 29.5 GB; no build was measured here."""
_GPU_FACTOR = {"rtx": 0.0, "tensorrt": 1.0}
"""The same of device memory: 28.8 GB were reported for that plan. TensorRT-RTX needs no GPU."""
_PLAN_BYTES = 40 << 20
"""Room for a plan's kernels, for each profile; measured 36 MB for 34 blocks with TensorRT-RTX 1.7.1."""
_COMPARING = 1.25
"""Memory of comparing, in multiples of what running block by block takes; measured 4.2 to 3.6 GB at the real size."""
_START_SECONDS, _TRACE_SECONDS, _BYTES_PER_SECOND = 5, 40, {"ort": 300e6, "rtx": 100e6, "tensorrt": 30e6}
"""For the estimate of the time: a build with nothing to do, tracing of all graphs, and what follows, on two cores."""


@dataclass(frozen=True)
class Needs:
    """Of one build."""

    disk: int
    """Bytes that the bundle takes beside those that are there."""
    scratch: int
    """Bytes beside it for a while."""
    memory: int
    """Peak of anonymous memory in bytes."""
    seconds: float
    """A rough estimate on two cores."""
    device: int = 0
    """Peak of device memory in bytes."""

    def __str__(self) -> str:
        device = f", {self.device / 1e9:.1f} GB of device memory" if self.device else ""
        return (
            f"needs {(self.disk + self.scratch) / 1e9:.2f} GB of disk, {self.memory / 1e9:.1f} GB of memory{device} "
            f"and about {_duration(self.seconds)}"
        )


def check_needs(needs: Needs, output: Path) -> None:
    """Raise OSError or MemoryError unless disk, memory and device memory suffice."""
    folder = output.absolute().parent
    if (free := shutil.disk_usage(folder).free) < needs.disk + needs.scratch:
        raise OSError(
            f"the bundle needs {(needs.disk + needs.scratch) / 1e9:.2f} GB, but {folder} has only {free / 1e9:.2f} GB "
            "left"
        )
    if (available := available_memory()) is not None and available < needs.memory:
        raise MemoryError(
            f"the build needs {needs.memory / 1e9:.1f} GB, but only {available / 1e9:.1f} GB are available; close "
            "other programs, add swap, or raise the container's limit"
        )
    gpu = look(0, ()).gpu if needs.device else None
    if gpu is not None and gpu.free < needs.device:
        raise MemoryError(
            f"the build needs {needs.device / 1e9:.1f} GB of device memory, but only {gpu.free / 1e9:.1f} GB of "
            f"{gpu.name} are free; close other programs that use the GPU, or build on a larger one of the same kind"
        )


def needs_of_build(
    variants: Sequence[Variant], checkpoint: Checkpoint, known: Measurements, stock: Stock, self_test: bool = False
) -> Needs:
    """What a build needs; what can be taken from an earlier one needs nothing, and what is in its way becomes room.

    Args:
        variants: all parts of the bundle.
        checkpoint: that they are made from.
        known: as far as it is without measuring. Stages that depend on more count as not finished.
        stock: of the build.
        self_test: whether what the self-test expects is computed, one product at a time.
    """
    needs: list[Needs] = []
    found: dict[str, Found] = {}
    for variant in variants:
        jobs = variant.jobs(checkpoint, known)
        taken = finished_jobs(checkpoint, jobs, stock)
        left = [job.stage for job in jobs if job.name not in taken]
        needs.append(needs_of(variant, checkpoint, left, stock.folder))
        found |= taken
    total = together(needs)
    if self_test:
        total = replace(total, memory=max(total.memory, _PROCESS_BYTES + peak_bytes(checkpoint)))
    return replace(total, disk=max(0, total.disk + stock.copied_bytes(found) - stock.freed_bytes(found)))


def needs_of(variant: Variant, checkpoint: Checkpoint, graphs: Collection[str], folder: Path) -> Needs:
    """What some graphs of a variant need that are built in `folder`.

    A warning says which files are copied that were to be linked.
    """
    stages = [stage for stage in checkpoint.sources if stage in {stage_of(graph) for graph in graphs}]
    weights = {stage: weight_bytes(checkpoint, stage, variant.types, variant.recipe) for stage in stages}
    memory, scratch, device, plans = _PROCESS_BYTES, 0, 0, 0
    if variant.engine:  # an engine for tiles has its own weights, where a graph finds those of the whole one
        weights = {graph: weights[stage_of(graph)] for graph in graphs}
        scratch = max((scratch_bytes(checkpoint, s, variant.types, variant.recipe) for s in stages), default=0)
        largest = max(weights.values(), default=0)
        memory += int(_ENGINE_FACTOR[variant.backend] * largest)
        device = int(_GPU_FACTOR[variant.backend] * largest)
        plans = _PLAN_BYTES * len(weights) * len(variant.engine.profiles)
    else:
        weights = {stage: size for stage, size in weights.items() if stage in graphs}
    if variant.types.activations != "base":
        # Measuring and comparing run the model block by block, comparing with the hidden states of all blocks.
        memory = max(memory, int(_COMPARING * streaming_bytes(checkpoint)))
    total = sum(weights.values())
    shared = variant.linked and not variant.engine
    disk = _linked_disk(variant, checkpoint, weights, folder) if shared else total
    seconds = (_TRACE_SECONDS if graphs else _START_SECONDS) + total / _BYTES_PER_SECOND[variant.backend]
    return Needs(_SPARE_BYTES + plans + disk, scratch, memory, seconds, device)


def _linked_disk(variant: Variant, checkpoint: Checkpoint, stages: Collection[str], folder: Path) -> int:
    """Bytes of linked graphs: what no file holds as they want it, and files that can have no second name there."""
    written, files = 0, dict[Path, int]()
    for stage in stages:
        size, held = linked_bytes(checkpoint, stage, variant.types, variant.recipe)
        written, files = written + size, files | held
    reasons = {file: why for file in files if (why := why_not_linked(file, folder))}
    copied = sum(files[file] for file in reasons)
    if reasons:
        file, why = next(iter(reasons.items()))
        print(
            f"warning: --weights link copies {len(reasons)} of {len(files)} files, {copied / 1e9:.2f} GB, which cannot "
            f"be linked to from {folder.parent}: {file} ({why})",
            file=sys.stderr,
        )
    return written + copied


def together(needs: list[Needs]) -> Needs:
    """What several backends need, one after another."""
    return Needs(
        sum(n.disk for n in needs),
        max(n.scratch for n in needs),
        max(n.memory for n in needs),
        sum(n.seconds for n in needs),
        max(n.device for n in needs),
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
