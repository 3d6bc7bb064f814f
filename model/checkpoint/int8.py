"""int8 weights: codes with one float32 scale for each output row, as `model.checkpoint.fp8` does it for float8.

``scale = max|row| / 127``, ``code = round(row / scale)``, ties to even. -128 is never used, so that a code and its
negative are both there. Of a float8 checkpoint the values are rounded, codes times row scales, once: the int8 grid does
not lie on the float8 one, and the error is 0.9 % of a weight at the released widths.
"""

import torch
from torch import Tensor

INT8_MAX = 127.0
_SMALLEST_ROW = 1e-12


def quantize_rows_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (out, in) int8 and scales (out,) float32 of a weight (out, in)."""
    weight = weight.float()
    scale = weight.abs().amax(dim=1).clamp(min=_SMALLEST_ROW) / INT8_MAX
    codes = (weight / scale[:, None]).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8)
    return codes, scale
