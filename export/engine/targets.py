"""GPUs that engines are built for, and what each of them can compute.

Measured with TensorRT-RTX 1.7.1, which builds for the listed compute capabilities on any machine: with FP8 in the graph
it refuses targets before sm89, with BF16 it refuses sm75; int8 it takes for all of them. Without a named target it
would build for "Ampere and later" and fail on the user's card instead, so targets are always named. TensorRT builds for
the GPU in the machine, whatever it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from export.graph.precision import Precision
from runtime.tensorrt.cuda import Gpu


@dataclass(frozen=True)
class Target:
    """One compute capability."""

    cards: str
    types: tuple[str, ...]
    """Types that its matrix units take, as `Precision` names them."""


TARGETS = {
    "sm75": Target("Turing: RTX 20", ("float32", "float16", "int8")),
    "sm80": Target("Ampere: A100", ("float32", "float16", "bfloat16", "int8")),
    "sm86": Target("Ampere: RTX 30", ("float32", "float16", "bfloat16", "int8")),
    "sm89": Target("Ada: RTX 40, L4, L40S", ("float32", "float16", "bfloat16", "int8", "float8")),
    "sm120": Target("Blackwell: RTX 50", ("float32", "float16", "bfloat16", "int8", "float8")),
    "sm121": Target("Blackwell: DGX Spark", ("float32", "float16", "bfloat16", "int8", "float8")),
}
DEFAULT_TARGETS = ("sm89", "sm120")
_CODES = {"fp8": "float8", "int8": "int8"}
_PRECISIONS = {
    "float8": "fp8 and fp8-weight-only",
    "int8": "int8",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float32": "fp32",
}


def check_targets(targets: Sequence[str], precision: Precision) -> tuple[str, ...]:
    """The targets in order and each once; ValueError for one that is unknown or cannot compute the precision."""
    if unknown := [target for target in targets if target not in TARGETS]:
        raise ValueError(f"--target {unknown[0]!r} is not known, wanted some of {', '.join(TARGETS)}")
    for target in targets:
        if missing := _missing(TARGETS[target].types, precision):
            raise ValueError(
                f"--target {target} ({TARGETS[target].cards}) cannot compute in {missing}. What each target takes: "
                f"{_abilities()}. Choose {_offer(TARGETS[target].types, precision)} for it"
            )
    return tuple(name for name in TARGETS if name in targets)


def check_gpu(gpu: Gpu, precision: Precision) -> str:
    """The target that a GPU is; ValueError if it cannot compute the precision, or is older than what TensorRT takes."""
    types = _types_of(int(gpu.capability.removeprefix("sm")))
    what = f"--backend tensorrt builds for the GPU in the machine, {gpu.name} ({gpu.capability})"
    if not types:
        raise ValueError(f"{what}, and TensorRT takes sm75 (Turing) and later")
    if missing := _missing(types, precision):
        raise ValueError(f"{what}, which cannot compute in {missing}. Choose {_offer(types, precision)} for it")
    return gpu.capability


def _types_of(capability: int) -> tuple[str, ...]:
    """What the matrix units of a compute capability such as 89 take; nothing before Turing."""
    since = {"float32": 75, "float16": 75, "int8": 75, "bfloat16": 80, "float8": 89}
    return tuple(name for name, first in since.items() if capability >= first)


def _missing(types: Sequence[str], precision: Precision) -> str:
    """What a precision needs beyond `types`, in words; empty if it needs nothing more."""
    wanted = {precision.compute} | ({_CODES[precision.codes]} if precision.codes else set())
    return " and ".join(sorted(wanted - set(types)))


def _abilities() -> str:
    return "; ".join(
        f"{name} {', '.join(_PRECISIONS[kind] for kind in target.types)}" for name, target in TARGETS.items()
    )


def _offer(types: Sequence[str], precision: Precision) -> str:
    """What a user would want instead, in options."""
    base = "" if "bfloat16" in types else " --base fp16"
    if precision.codes == "int8":
        return f"--precision int8{base}"
    plain = " or ".join(_PRECISIONS[kind] for kind in ("float16", "bfloat16") if kind in types)
    return f"--precision int8{base}, or --precision {plain}," if precision.codes else f"--precision {plain}"
