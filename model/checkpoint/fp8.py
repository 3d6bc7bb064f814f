"""The release's weight quantizer: float8 e4m3 codes with one float32 scale per output row.

``scale = max|row| / 448``, ``code = round(row / scale)`` (ideogram-oss/ideogram4 ``quantized_loading.py``). 448 is the
largest finite e4m3 number; the lower bound of the row's maximum keeps empty rows from dividing by zero.
"""

import torch
from torch import Tensor

E4M3_MAX = 448.0
_SMALLEST_ROW = 1e-12


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (out, in) float8_e4m3fn and scales (out,) float32 of a weight (out, in)."""
    weight = weight.float()
    scale = weight.abs().amax(dim=1).clamp(min=_SMALLEST_ROW) / E4M3_MAX
    codes = (weight / scale[:, None]).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return codes, scale
