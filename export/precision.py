"""What a precision means for each stage."""

from dataclasses import dataclass
from typing import Literal

import torch

Compute = Literal["float32", "float16", "bfloat16"]
TimestepDtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Precision:
    """Types of one ``--precision``."""

    compute: Compute
    """Type of matrix multiplications and convolutions."""
    vae: Compute
    timestep: TimestepDtype
    """What the time is rounded to. The PyTorch pipelines cast it to their model's type, bfloat16 in practice."""


PRECISIONS = {
    "fp32": Precision("float32", "float32", "float32"),
    # No source reports whether the autoencoder's activations stay within float16, and it is 1 % of the weights.
    "fp16": Precision("float16", "float32", "bfloat16"),
    "bf16": Precision("bfloat16", "bfloat16", "bfloat16"),
}


def compute_type(precision: str, stage: str) -> Compute:
    """Type that a stage computes in."""
    return PRECISIONS[precision].vae if stage.startswith("vae_") else PRECISIONS[precision].compute


def torch_dtype(compute: Compute) -> torch.dtype:
    """The same as PyTorch names it."""
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[compute]
