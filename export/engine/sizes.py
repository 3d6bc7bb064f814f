"""The sizes that an engine is built for: an optimisation profile, derived from picture sizes and text lengths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime.bundle.manifest import SizeRange, SizeSpec, TensorSpec
from runtime.image.tiling import AUTO_PIXELS, MIN_PIXELS

Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Smallest, best and largest shape of each input."""
OPTIMAL_TEXT = 256
"""Tokens that the engines are tuned for; JSON captions of the released examples have 200 to 500."""

MAX_BATCH = 64
"""Pictures in one call that an engine may be built for."""


@dataclass(frozen=True)
class Limits:
    """Sides of a picture in pixels, text tokens, and pictures in a batch."""

    minimum: int
    optimum: int
    maximum: int
    max_text: int
    max_batch: int = 1


def limits_of(
    sizes: SizeSpec, max_text: int, minimum: int | None, optimum: int | None, maximum: int | None, max_batch: int
) -> Limits:
    """Limits within the model's sizes; None for the model's own. ValueError names an option out of range."""
    limits = Limits(
        sizes.minimum if minimum is None else minimum,
        sizes.default if optimum is None else optimum,
        sizes.maximum if maximum is None else maximum,
        max_text,
        max_batch,
    )
    for option, value in (
        ("--min-size", limits.minimum),
        ("--opt-size", limits.optimum),
        ("--max-size", limits.maximum),
    ):
        if not sizes.minimum <= value <= sizes.maximum or value % sizes.multiple:
            raise ValueError(
                f"{option} is {value}, wanted a multiple of {sizes.multiple} from {sizes.minimum} to {sizes.maximum}"
            )
    if not limits.minimum <= limits.optimum <= limits.maximum:
        raise ValueError(
            f"--min-size {limits.minimum}, --opt-size {limits.optimum} and --max-size {limits.maximum} are not in order"
        )
    if not 1 <= max_batch <= MAX_BATCH:
        raise ValueError(f"--max-batch is {max_batch}, wanted 1 to {MAX_BATCH} pictures")
    return limits


def size_ranges(limits: Limits, multiple: int) -> dict[str, SizeRange]:
    """Range of every named size of `export.graph.records`. A picture may have any sides within the limits.

    A tile has the sides that `runtime.image.tiling` chooses by itself, or smaller ones, and so has a thumbnail. Larger
    tiles, which a user may ask for, would take what tiles are to save: the scratch memory of an engine is counted at
    its largest sizes, and the attention's scores grow with the fourth power of the side.
    """
    grid = SizeRange(limits.minimum // multiple, limits.optimum // multiple, limits.maximum // multiple)
    tokens = SizeRange(grid.minimum**2, grid.optimum**2, grid.maximum**2)
    text = SizeRange(1, min(OPTIMAL_TEXT, limits.max_text), limits.max_text)
    rows = SizeRange(*(a + b for a, b in zip(_values(tokens), _values(text), strict=True)))
    side = SizeRange(limits.minimum, limits.optimum, limits.maximum)
    largest = min(AUTO_PIXELS, limits.maximum)
    tile_side = SizeRange(min(MIN_PIXELS, limits.minimum), largest, largest)
    tile = SizeRange(*(pixels // multiple for pixels in _values(tile_side)))
    return {
        "B": SizeRange(1, 1, limits.max_batch),
        "N": tokens,
        "T": text,
        "L": rows,
        "grid_h": grid,
        "grid_w": grid,
        "H": side,
        "W": side,
        **dict.fromkeys(("tile_h", "tile_w", "thumb_h", "thumb_w"), tile),
        **dict.fromkeys(("tile_H", "tile_W", "thumb_H", "thumb_W"), tile_side),
    }


def shapes(inputs: Sequence[TensorSpec], ranges: Mapping[str, SizeRange]) -> Shapes:
    """Smallest, best and largest shape of each input."""
    return {spec.name: tuple(_shape(spec, ranges, place) for place in range(3)) for spec in inputs}  # type: ignore[misc]


def used(inputs: Sequence[TensorSpec], ranges: Mapping[str, SizeRange]) -> dict[str, SizeRange]:
    """The ranges of the sizes that `inputs` have."""
    names = {size for spec in inputs for size in spec.shape if isinstance(size, str)}
    return {name: size for name, size in ranges.items() if name in names}


def _shape(spec: TensorSpec, ranges: Mapping[str, SizeRange], place: int) -> tuple[int, ...]:
    return tuple(_values(ranges[size])[place] if isinstance(size, str) else size for size in spec.shape)


def _values(size: SizeRange) -> tuple[int, int, int]:
    return size.minimum, size.optimum, size.maximum
