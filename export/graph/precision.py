"""What a precision means for each stage."""

from dataclasses import dataclass, replace
from typing import Literal

import torch

Compute = Literal["float32", "float16", "bfloat16"]
CodeName = Literal["fp8", "int8"]
Activations = Literal["base", "token", "static"]

BASES: dict[str, Compute] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Base types: what is not quantized in a quantized bundle, and the other precisions themselves."""

DEFAULT_BASE = {"ort": "fp32", "rtx": "bf16", "tensorrt": "bf16"}
"""Base type of a quantized bundle for each backend. ONNX Runtime multiplies float8 weights out on a CPU, and float32 is
what a CPU computes fastest and exactly. TensorRT's fused kernels want 16 bits, and bfloat16 is the model's own type."""


@dataclass(frozen=True)
class Precision:
    """Types of one build."""

    compute: Compute
    """Type of the matrix multiplications that are not quantized."""
    codes: CodeName | None = None
    """Type of quantized weights; None quantizes nothing."""
    activations: Activations = "base"
    """How the blocks' activations are quantized: with one scale for each token, found while running; with one static
    scale for a tensor, from a file; or not at all."""

    def stage(self, stage: str) -> Compute:
        """Type that a stage computes in."""
        # No source reports whether the autoencoder's activations stay within float16, and it is 1 % of the weights.
        return "float32" if stage.startswith("vae_") and self.compute == "float16" else self.compute

    def of_stage(self, stage: str, activations: bool) -> "Precision":
        """What of it touches one stage, whose `activations` are quantized or not."""
        if stage.startswith("vae_"):
            return Precision(self.stage(stage))
        return self if activations else replace(self, activations="base")

    @property
    def timestep(self) -> Literal["float32", "bfloat16"]:
        """What the time is rounded to. PyTorch pipelines cast it to their model's type, bfloat16 in practice."""
        return "float32" if self.compute == "float32" and self.codes is None else "bfloat16"


QUANTIZED = ("fp8", "int8")
"""Precisions that quantize activations too."""
PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "int8", "fp8-weight-only")
ACTIVATIONS = ("token", "static")


def precision_of(name: str, base: str | None, backend: str, activations: str | None = None) -> Precision:
    """The types behind ``--precision``, ``--base`` and ``--activations``.

    Raises:
        ValueError: the precision has no base or no activations to choose, or the backend cannot have it.
    """
    if activations is not None and name not in QUANTIZED:
        raise ValueError(f"--activations {activations} goes with --precision fp8, and --precision is {name}")
    if activations == "static" and name == "int8":
        raise ValueError("--activations static goes with --precision fp8; int8 has a scale for each token")
    if name in BASES:
        if base is not None:
            raise ValueError(f"--base {base} goes with the precisions fp8 and int8 only, and --precision is {name}")
        if name == "fp32" and backend != "ort":
            raise ValueError(f"--precision fp32 is for ort; the fused kernels of {backend} want fp8, bf16 or fp16")
        return Precision(BASES[name])
    base = base or DEFAULT_BASE[backend]
    if base == "fp32" and backend != "ort":
        raise ValueError(f"--base fp32 is for ort; the fused kernels of {backend} want bf16 or fp16")
    if name not in QUANTIZED:
        return Precision(BASES[base], "fp8")
    return Precision(BASES[base], "int8" if name == "int8" else "fp8", "static" if activations == "static" else "token")


def torch_dtype(compute: Compute) -> torch.dtype:
    """The same as PyTorch names it."""
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[compute]
