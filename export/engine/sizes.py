"""The sizes that an engine is built for: its optimization profiles, derived from picture sizes and text lengths."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from export.engine.profile_option import Around, parse_profile
from runtime.bundle.graph_specs import SizeRange, TensorSpec
from runtime.bundle.manifest import SizeSpec
from runtime.image.tiling import AUTO_PIXELS, MIN_PIXELS

Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Smallest, best and largest shape of each input."""
OPTIMAL_TEXT = 256
"""Tokens that the engines are tuned for; JSON captions of the released examples have 200 to 500."""

MAX_BATCH = 64
"""Pictures in one call that an engine may be built for."""


@dataclass(frozen=True)
class Limits:
    """What the profiles of an engine may take: sides of a picture in pixels, text tokens, and pictures in a batch."""

    minimum: int
    maximum: int
    max_text: int
    max_batch: int = 1


@dataclass(frozen=True)
class Extent:
    """What one profile takes, and is tuned for."""

    side: SizeRange
    """In pixels."""
    text: SizeRange
    """In tokens."""


def limits_of(sizes: SizeSpec, max_text: int, minimum: int | None, maximum: int | None, max_batch: int) -> Limits:
    """Limits within the model's sizes; None for the model's own. ValueError names an option out of range."""
    limits = Limits(
        sizes.minimum if minimum is None else minimum,
        sizes.maximum if maximum is None else maximum,
        max_text,
        max_batch,
    )
    for option, value in (("--min-size", limits.minimum), ("--max-size", limits.maximum)):
        if not sizes.minimum <= value <= sizes.maximum or value % sizes.multiple:
            raise ValueError(
                f"{option} is {value}, wanted a multiple of {sizes.multiple} from {sizes.minimum} to {sizes.maximum}"
            )
    if limits.minimum > limits.maximum:
        raise ValueError(f"--min-size {limits.minimum} is above --max-size {limits.maximum}")
    if not 1 <= max_batch <= MAX_BATCH:
        raise ValueError(f"--max-batch is {max_batch}, wanted 1 to {MAX_BATCH} pictures")
    return limits


def extents(limits: Limits, sizes: SizeSpec, optimum: int | None, profiles: Sequence[str]) -> tuple[Extent, ...]:
    """The profiles, smallest first and each once.

    Args:
        limits: that they keep to.
        sizes: of the model.
        optimum: ``--opt-size``: the side that one profile for everything is tuned for; None for not given.
        profiles: values of ``--profile``; without them and `optimum` there are two profiles, for the model's default
            size and for half of it, within the limits.

    Raises:
        ValueError: an option is out of range; the message names it.
    """
    if profiles:
        made = [_extent(limits, sizes, text) for text in profiles]
    elif optimum is not None:
        ends = (limits.minimum, limits.maximum)
        made = [Extent(_sides("--opt-size", Around(optimum, ends), limits, sizes), _all_text(limits))]
    else:
        made = _default_pair(limits, sizes)
    return tuple(sorted(dict.fromkeys(made), key=lambda extent: (*_ends(extent.side), *_ends(extent.text))))


def together(profiles: Sequence[Extent], limits: Limits) -> Limits:
    """The limits as far as the profiles use them."""
    sides = [extent.side for extent in profiles]
    return replace(limits, minimum=min(side.minimum for side in sides), maximum=max(side.maximum for side in sides))


def _default_pair(limits: Limits, sizes: SizeSpec) -> list[Extent]:
    """For the default size whatever is taken; for half of it what is not clearly nearer to the default."""
    half = sizes.default // 2 // sizes.multiple * sizes.multiple
    between = (half + sizes.default) // 2 // sizes.multiple * sizes.multiple
    best, small = (min(max(size, limits.minimum), limits.maximum) for size in (sizes.default, half))
    pair = [Extent(SizeRange(limits.minimum, best, limits.maximum), _all_text(limits))]
    if small < best:
        side = SizeRange(limits.minimum, small, min(max(between, small), limits.maximum))
        pair.append(Extent(side, _all_text(limits)))
    return pair


def _extent(limits: Limits, sizes: SizeSpec, text: str) -> Extent:
    option = parse_profile(text)
    name = f"--profile {text}"
    tokens = _all_text(limits)
    if option.text is not None:
        low, high = option.text.ends or (1, limits.max_text)
        if not 1 <= low <= option.text.best <= high <= limits.max_text:
            raise ValueError(
                f"{name}: the text of {option.text.best} tokens, of {low} to {high}, is out of order or range, wanted "
                f"1 to {limits.max_text}"
            )
        tokens = SizeRange(low, option.text.best, high)
    return Extent(_sides(name, option.side, limits, sizes), tokens)


def _sides(name: str, around: Around, limits: Limits, sizes: SizeSpec) -> SizeRange:
    low, high = around.ends or (limits.minimum, limits.maximum)
    if not limits.minimum <= low <= around.best <= high <= limits.maximum or any(
        side % sizes.multiple for side in (low, around.best, high)
    ):
        raise ValueError(
            f"{name}: the side {around.best}, of {low} to {high}, is out of order or range, wanted multiples of "
            f"{sizes.multiple} from {limits.minimum} to {limits.maximum}"
        )
    return SizeRange(low, around.best, high)


def _all_text(limits: Limits) -> SizeRange:
    return SizeRange(1, min(OPTIMAL_TEXT, limits.max_text), limits.max_text)


def _ends(size: SizeRange) -> tuple[int, int, int]:
    return size.maximum, size.optimum, size.minimum


def size_ranges(extent: Extent, limits: Limits, multiple: int) -> dict[str, SizeRange]:
    """Range of every named size of `export.graph.records`. A picture may have any sides within the profile's.

    A tile has the sides that `runtime.image.tiling` chooses by itself, or smaller ones, and so has a thumbnail, in all
    profiles. Larger tiles, which a user may ask for, would take what tiles are to save: the scratch memory of an engine
    is counted at its largest sizes, and the attention's scores grow with the fourth power of the side.
    """
    side, text = extent.side, extent.text
    grid = SizeRange(*(pixels // multiple for pixels in _values(side)))
    tokens = SizeRange(grid.minimum**2, grid.optimum**2, grid.maximum**2)
    rows = SizeRange(*(a + b for a, b in zip(_values(tokens), _values(text), strict=True)))
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


def used(inputs: Sequence[TensorSpec], profiles: Iterable[Mapping[str, SizeRange]]) -> list[dict[str, SizeRange]]:
    """The profiles of a graph: the ranges of the sizes that `inputs` have; what is the same for it is one profile."""
    names = {size for spec in inputs for size in spec.shape if isinstance(size, str)}
    made: list[dict[str, SizeRange]] = []
    for ranges in profiles:
        own = {name: size for name, size in ranges.items() if name in names}
        if own not in made:
            made.append(own)
    return made


def _shape(spec: TensorSpec, ranges: Mapping[str, SizeRange], place: int) -> tuple[int, ...]:
    return tuple(_values(ranges[size])[place] if isinstance(size, str) else size for size in spec.shape)


def _values(size: SizeRange) -> tuple[int, int, int]:
    return size.minimum, size.optimum, size.maximum
