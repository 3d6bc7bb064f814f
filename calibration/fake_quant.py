"""Float8 in effect but not in type: what a transformer computes when its activations have been through e4m3.

For measuring what float8 costs before anything is exported. Not covered: the softmax inside the attention, which a
float8 attention also stores as e4m3 (with the fixed scale 1/448); it is inside one torch function, where no hook
reaches. Nor are weights touched.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from calibration.points import POINTS, hooked, names_of, point_of
from model.checkpoint.row_codes import E4M3_MAX, INT8_MAX

SMALLEST_TOKEN = 1e-30
"""Least magnitude that a token's largest value counts as."""


@contextlib.contextmanager
def fake_quantized(
    module: nn.Module, stage: str, ranges: Mapping[str, float], points: Collection[str] | None = None
) -> Iterator[None]:
    """Quantize and dequantize activations of a transformer whenever it runs, as long as the context lasts.

    Args:
        module: an `Ideogram4Transformer`.
        stage: ``dit_cond`` or ``dit_uncond``.
        ranges: name of a tensor, as ``dit_cond.layers.0.attention.qkv``, to its range; may hold more than is used.
            Those of q and k are after multiplication by head_dim^-1/4, as calibration measures them.
        points: what to quantize: tensors' names, or points as ``attention.qkv`` for those of all layers. None for
            all tensors.

    Raises:
        ValueError: a point is unknown, or a tensor has no range or one that is not above 0.
    """
    names = _selected(names_of(stage, len(module.layers)), points)
    for name in names:
        if not ranges.get(name, 0) > 0:
            raise ValueError(f"{name} has the range {ranges.get(name)}, wanted a number above 0")
    with hooked(module, stage, lambda name, x: quantize_dequantize(x, ranges[name]), names):
        yield


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


def _selected(names: list[str], points: Collection[str] | None) -> list[str]:
    if points is None:
        return names
    if unknown := sorted(set(points) - set(names) - set(POINTS)):
        raise ValueError(f"point is {unknown[0]!r}, wanted one of {', '.join(POINTS)}, or a name as {names[0]}")
    return [name for name in names if name in points or point_of(name) in points]
