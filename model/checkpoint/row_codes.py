"""Quantized weights: codes with one float32 scale for each output row, in float8 (e4m3) or int8.

Float8 is the release's own rule: ``scale = max|row| / 448``, ``code = round(row / scale)`` (ideogram-oss/ideogram4
``quantized_loading.py``); 448 is the largest finite e4m3 number. int8 is the same with 127; -128 is never used, so that
a code and its negative are both there. The values of a float8 checkpoint, codes times row scales, become int8 by one
rounding, which is off by 0.9 % of a weight at the released widths.
"""

import torch
from torch import Tensor

E4M3_MAX = 448.0
INT8_MAX = 127.0
_SIGN_AND_MAGNITUDE = ~0x4000
"""Of a float16's bits, all but the one that the sign extension of a shifted e4m3 code leaves between them."""
_SMALLEST_ROW = 1e-12
"""Least magnitude that a row's largest value counts as: empty rows do not divide by zero."""


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (out, in) float8_e4m3fn and scales (out,) float32 of a weight (out, in)."""
    weight = weight.float()
    scale = _scales(weight, E4M3_MAX)
    codes = (weight / scale[:, None]).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return codes, scale


def decode_e4m3(codes: Tensor) -> Tensor:
    """The float32 values of e4m3 codes, none of which is NaN; several times as fast as PyTorch's conversion.

    Sign, exponent and mantissa are moved to where float16 has them; what is left is the difference of the exponents'
    biases, 2^8.
    """
    bits = codes.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(_SIGN_AND_MAGNITUDE)
    return bits.view(torch.float16).float().mul_(256.0)


def quantize_rows_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (out, in) int8 and scales (out,) float32 of a weight (out, in); ties go to even codes."""
    weight = weight.float()
    scale = _scales(weight, INT8_MAX)
    codes = (weight / scale[:, None]).round_().clamp_(-INT8_MAX, INT8_MAX).to(torch.int8)
    return codes, scale


def _scales(weight: Tensor, largest: float) -> Tensor:
    return weight.abs().amax(dim=1).clamp(min=_SMALLEST_ROW) / largest
