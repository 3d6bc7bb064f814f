"""Rounding in effect but not in type: what activations are after they have been through 8 bits, in float32.

For measuring what 8 bits cost beside a build.
"""

import torch
from torch import Tensor

from model.checkpoint.row_codes import E4M3_MAX, INT8_MAX

SMALLEST_TOKEN = 1e-30
"""Least magnitude that a token's largest value counts as."""


def quantize_dequantize(x: Tensor, largest: float) -> Tensor:
    """The nearest of x's values that e4m3 with the range `largest` can hold, in float32."""
    scale = torch.tensor(largest / E4M3_MAX, dtype=torch.float32, device=x.device)
    codes = (x.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return codes.float() * scale


def round_tokens(x: Tensor, codes: str) -> Tensor:
    """x (..., tokens, channels) as ``fp8`` or ``int8`` codes with one scale for each token hold it, in float32."""
    limit = E4M3_MAX if codes == "fp8" else INT8_MAX
    largest = x.float().abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_TOKEN)
    scaled = x.float() * (limit / largest)
    rounded = scaled.to(torch.float8_e4m3fn).float() if codes == "fp8" else scaled.round().clamp(-limit, limit)
    return rounded * (largest / limit)
