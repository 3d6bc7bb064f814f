"""The types that quantized numbers are stored in."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir
from torch import Tensor

from model.checkpoint.row_codes import E4M3_MAX, INT8_MAX, quantize_rows_int8
from model.checkpoint.sources import Weight

Form = Literal["ort", "trt"]
"""Which engine's form of a graph."""
_FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class Codes:
    """One such type."""

    name: str
    """As options and manifests have it."""
    dtype: ir.DataType
    """Of weights."""
    largest: float
    """Largest magnitude of a code."""
    rows: Callable[[Weight], tuple[Tensor, Tensor]]
    """Codes (out, in) and row scales (out,) float32 of a weight."""

    def zero(self, form: Form) -> np.ndarray[Any, Any]:
        """The zero point of activations, whose type is that of their codes.

        ONNX Runtime on a CPU multiplies unsigned activations with signed weights 12 times as fast as signed ones.
        """
        if self is FP8:
            return np.zeros((), ml_dtypes.float8_e4m3fn)
        return np.array(128, np.uint8) if form == "ort" else np.zeros((), np.int8)

    def range_exponent(self, width: int) -> int:
        """Twice the e for which 2^-e on both sides keeps a sum of `width` products of codes within float16.

        Even, so that it can be split in two. The products of the largest codes alone reach 448 * 448 * 12288 = 2.5e9.
        """
        exponent = math.log2(self.largest**2 * width / _FLOAT16_MAX)
        return 2 * max(0, math.ceil(exponent / 2))


FP8 = Codes("fp8", ir.DataType.FLOAT8E4M3FN, E4M3_MAX, lambda weight: weight.quantized())
INT8 = Codes("int8", ir.DataType.INT8, INT8_MAX, lambda weight: quantize_rows_int8(weight.read()))
CODES: dict[str, Codes] = {codes.name: codes for codes in (FP8, INT8)}
"""By name."""
