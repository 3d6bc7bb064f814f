"""What a build needs, said and checked before it starts."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import from_torch_dtype

from export.graph.passes.codes import CODES
from export.graph.passes.join_products import groups
from export.graph.precision import Precision, torch_dtype
from export.graph.recipe import Recipe, quantized_weights
from export.graph.weights import is_held
from model.checkpoint.directory import Checkpoint
from model.layers import set_compute_dtype
from runtime.backend.machine import look
from runtime.host_memory import available_memory

_CODE_TYPES = [codes.dtype for codes in CODES.values()]
_SPARE_BYTES = 64 << 20
"""Disk space wanted beyond the weights: graphs, kernels, tokenizer, manifest."""
_PROCESS_BYTES = 1 << 30
"""Memory of a build beside the weights: PyTorch, the graph, TensorRT. Measured 0.6 to 0.9 GB."""
_ENGINE_FACTOR = {"ort": 0.0, "rtx": 1.2, "tensorrt": 5.0}
"""Memory of an engine's build in multiples of its weights. TensorRT-RTX 1.7.1: measured 1.1. TensorRT: users of
NVIDIA/TensorRT-Model-Connect report 148 GB for a plan of 29.5 GB; no build was measured here."""
_GPU_FACTOR = {"ort": 0.0, "rtx": 0.0, "tensorrt": 1.0}
"""The same of device memory: 28.8 GB were reported for that plan. TensorRT-RTX needs no GPU."""
_PLAN_BYTES = 40 << 20
"""Room for a plan's kernels, for each profile; measured 36 MB for 34 blocks with TensorRT-RTX 1.7.1."""
_TRACE_SECONDS, _BYTES_PER_SECOND = 40, {"ort": 300e6, "rtx": 100e6, "tensorrt": 30e6}
"""For the estimate of the time: tracing of all graphs, and what follows, on two cores."""


@dataclass(frozen=True)
class Needs:
    """Of one build."""

    disk: int
    """Bytes that the bundle takes."""
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


def weight_bytes(checkpoint: Checkpoint, stage: str, precision: Precision, recipe: Recipe) -> int:
    """Bytes of a stage's weights: one for a code and four for each row's scale, else the compute type's."""
    parameters = _parameters(checkpoint, stage, precision, recipe).values()
    return sum(_nbytes(shape, dtype) + (4 * shape[0] if dtype in _CODE_TYPES else 0) for shape, dtype in parameters)


def scratch_bytes(checkpoint: Checkpoint, stage: str, precision: Precision, recipe: Recipe) -> int:
    """Bytes of weights that are written for the builder of an engine, since no file holds them as it wants them."""
    sources, parameters = checkpoint.sources[stage], _parameters(checkpoint, stage, precision, recipe)
    written = {name for name, (_, dtype) in parameters.items() if not is_held(sources[name].pieces, dtype)}
    for _, names in groups(sources):
        parts = [part for name in names for part in sources[name].pieces]
        if not is_held(parts, parameters[names[0]][1]):
            written |= set(names)
    return sum(_nbytes(*parameters[name]) for name in written)


def _nbytes(shape: torch.Size, dtype: ir.DataType) -> int:
    return shape.numel() * int(dtype.itemsize)


def _parameters(
    checkpoint: Checkpoint, stage: str, precision: Precision, recipe: Recipe
) -> dict[str, tuple[torch.Size, ir.DataType]]:
    """Shape of each parameter of a stage, and the type that its graph holds it in."""
    module = set_compute_dtype(checkpoint.module(stage), torch_dtype(precision.stage(stage)))
    coded: set[str] = set()
    if precision.codes and not stage.startswith("vae_"):
        coded = set(quantized_weights(module, stage, checkpoint.sources[stage], recipe, precision.codes))
    return {
        name: (p.shape, CODES[precision.codes].dtype if name in coded else from_torch_dtype(p.dtype))  # type: ignore[index]
        for name, p in module.named_parameters()
    }


def needs_of(backend: str, weights: dict[str, int], linked: bool, scratch: int = 0, profiles: int = 1) -> Needs:
    """What the stages with `weights` bytes need for one backend; `linked` weights take no disk.

    For engines, `scratch` is the largest of the stages' `scratch_bytes`, and `profiles` how many each of them has.
    """
    total, largest = sum(weights.values()), max(weights.values(), default=0)
    engines = backend != "ort"
    plans = _PLAN_BYTES * len(weights) * profiles if engines else 0
    return Needs(
        _SPARE_BYTES + plans + (0 if linked and not engines else total),
        scratch,
        _PROCESS_BYTES + int(_ENGINE_FACTOR[backend] * largest),
        _TRACE_SECONDS + total / _BYTES_PER_SECOND[backend],
        int(_GPU_FACTOR[backend] * largest),
    )


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
