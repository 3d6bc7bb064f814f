"""Float8 in effect but not in type: what a transformer computes when its activations have been through e4m3.

Not covered: the softmax inside the attention, which a float8 attention also stores as e4m3 (with the fixed scale
1/448); it is inside one torch function, where no hook reaches. Nor are weights touched.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping

from torch import nn

from calibration.fake_quant import quantize_dequantize
from calibration.points import POINTS, hooked, names_of, point_of


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


def _selected(names: list[str], points: Collection[str] | None) -> list[str]:
    if points is None:
        return names
    if unknown := sorted(set(points) - set(names) - set(POINTS)):
        raise ValueError(f"point is {unknown[0]!r}, wanted one of {', '.join(POINTS)}, or a name as {names[0]}")
    return [name for name in names if name in points or point_of(name) in points]
