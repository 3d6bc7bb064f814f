"""What a precision means for each stage."""

from dataclasses import dataclass
from typing import Literal

import torch

Compute = Literal["float32", "float16", "bfloat16"]

BASES: dict[str, Compute] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Base types: what is not float8 in a float8 bundle, and the other precisions themselves."""

DEFAULT_BASE = {"ort": "fp32", "rtx": "bf16", "tensorrt": "bf16"}
"""Base type of a float8 bundle for each backend. ONNX Runtime multiplies float8 weights out on a CPU, and float32 is
what a CPU computes fastest and exactly. TensorRT's fused kernels want 16 bits, and bfloat16 is the model's own type."""


@dataclass(frozen=True)
class Precision:
    """Types of one build."""

    compute: Compute
    """Type of the matrix multiplications that are not float8."""
    weights_fp8: bool = False
    activations_fp8: bool = False

    def stage(self, stage: str) -> Compute:
        """Type that a stage computes in."""
        # No source reports whether the autoencoder's activations stay within float16, and it is 1 % of the weights.
        return "float32" if stage.startswith("vae_") and self.compute == "float16" else self.compute

    @property
    def timestep(self) -> Literal["float32", "bfloat16"]:
        """What the time is rounded to. PyTorch pipelines cast it to their model's type, bfloat16 in practice."""
        return "float32" if self.compute == "float32" and not self.weights_fp8 else "bfloat16"


PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "fp8-weight-only")


def precision_of(name: str, base: str | None, backend: str) -> Precision:
    """The types behind ``--precision`` and ``--base``; ValueError when a base is given to a precision without one."""
    if not name.startswith("fp8"):
        if base is not None:
            raise ValueError(f"--base {base} goes with the fp8 precisions only, and --precision is {name}")
        if name == "fp32" and backend != "ort":
            raise ValueError(f"--precision fp32 is for ort; the fused kernels of {backend} want fp8, bf16 or fp16")
        return Precision(BASES[name])
    base = base or DEFAULT_BASE[backend]
    if base == "fp32" and backend != "ort":
        raise ValueError(f"--base fp32 is for ort; the fused kernels of {backend} want bf16 or fp16")
    return Precision(BASES[base], weights_fp8=True, activations_fp8=name == "fp8")


def torch_dtype(compute: Compute) -> torch.dtype:
    """The same as PyTorch names it."""
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[compute]
