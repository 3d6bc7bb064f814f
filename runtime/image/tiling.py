"""The VAE in tiles: bounded memory for any picture, at the price of small differences.

The VAE's last block holds 256 channels of every pixel several times over: 4.3 GB each for 2048 x 2048 pixels. Tiles
overlap and are blended. Next to a cut the convolutions see padding where the picture goes on; that could reach nine
tokens (138 pixels) far through the released decoder's layers, and was measured to matter for two. So a quarter of each
overlap, four tokens, is dropped on either side, and the tiles fade into each other over the half between. What the VAE
computes from the whole picture, its group norms' statistics and its attention, comes from a thumbnail that every tile's
graph gets as well; see `model.tiled_autoencoder`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from runtime.errors import RequestError, shown

AUTO_PIXELS = 1152
"""Side of the largest picture that ``auto`` decodes whole, and of its tiles. The released size's VAE then takes about 8
GB in ONNX Runtime, by what it took for 1024 pixels. 2 x 2 tiles cover 2048 x 2048 with an overlap of 256 pixels."""
MIN_PIXELS = 256
_OVERLAP_TOKENS = 16


@dataclass(frozen=True)
class Span:
    """A tile on one axis, in tokens."""

    start: int
    stop: int
    weights: np.ndarray
    """(stop - start) * scale float32: the tile's part in each row of the result; over all tiles they add up to 1."""


def resolve_tile(setting: str | int, width: int, height: int, multiple: int, available: bool) -> int | None:
    """Side of the VAE's tiles in pixels, or None for the whole picture at once.

    Args:
        setting: a number of pixels, ``off``, or ``auto``: in tiles if the picture has more than 1152² pixels. The rule
            looks at the size alone, so that a picture does not depend on the memory of the machine.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        multiple: pixels per token.
        available: whether the bundle has graphs for tiles; bundles of earlier versions have none, and `auto` is `off`.

    Raises:
        RequestError: `setting` is something else, too small, not a multiple of `multiple`, or not available.
    """
    if setting == "off":
        return None
    if setting == "auto":
        return AUTO_PIXELS if available and width * height > AUTO_PIXELS**2 else None
    if not isinstance(setting, int) or isinstance(setting, bool):
        raise RequestError(f"vae_tile is {shown(setting)}, wanted auto, off, or a number of pixels")
    if setting < MIN_PIXELS or setting % multiple:
        raise RequestError(f"vae_tile is {shown(setting)}, wanted a multiple of {multiple} from {MIN_PIXELS} pixels up")
    if not available:
        raise RequestError(
            f"vae_tile is {setting}, and this bundle has no graphs for tiles; build it again, or use off"
        )
    return setting if setting < max(width, height) else None


def in_tiles(
    run: Callable[[slice, slice], np.ndarray], grid: tuple[int, int], tile: int, scale: int, channels: int
) -> np.ndarray:
    """The result of `run` for a whole grid, put together from tiles.

    Args:
        run: (rows, columns of tokens) -> (h * scale, w * scale, channels) of any type.
        grid: rows and columns of tokens.
        tile: largest number of tokens of a tile on each axis, at least 4.
        scale: rows of the result per row of tokens: 16 for decoding, 1 for encoding.
        channels: of the result.

    Returns:
        (rows * scale, columns * scale, channels) float32.
    """
    whole = np.zeros((grid[0] * scale, grid[1] * scale, channels), np.float32)
    for down in spans(grid[0], tile, scale):
        for across in spans(grid[1], tile, scale):
            piece = run(slice(down.start, down.stop), slice(across.start, across.stop))
            place = whole[down.start * scale : down.stop * scale, across.start * scale : across.stop * scale]
            place += (down.weights[:, None] * across.weights)[:, :, None] * piece
    return whole


def thumbnail(picture: np.ndarray, tile: int, scale: int) -> np.ndarray:
    """Rows and columns of a picture (rows * scale, columns * scale, C), evenly spread: at most `tile` tokens of each.

    So a thumbnail is never larger than a tile, and a picture that is longer than a tile on one side only is squeezed
    on that side. The nearest rows and not their means: means would smooth away the spread that it is to show.
    """
    for axis in (0, 1):
        tokens = picture.shape[axis] // scale
        wanted = min(tokens, tile) * scale
        nearest = ((np.arange(wanted) + 0.5) * (tokens * scale / wanted)).astype(np.int64)
        picture = picture.take(nearest, axis)
    return picture


def spans(length: int, tile: int, scale: int) -> list[Span]:
    """Tiles that cover `length` tokens, evenly spread, with overlaps of 16 tokens or a quarter of the tile at least."""
    if tile >= length:
        return [Span(0, length, np.ones(length * scale, np.float32))]
    overlap = min(_OVERLAP_TOKENS, tile // 4)
    count = -(-(length - overlap) // (tile - overlap))
    starts = [round(index * (length - tile) / (count - 1)) for index in range(count)]
    # Distance of each row's middle from the cut edges; the picture's own edges are no cuts.
    rows = np.arange(length * scale) + 0.5
    weights = np.zeros((count, length * scale))
    for index, start in enumerate(starts):
        left = rows - start * scale if index > 0 else np.inf
        right = (start + tile) * scale - rows if index < count - 1 else np.inf
        depth = (np.minimum(left, right) / scale - overlap / 4) / (overlap / 2)
        inside = slice(start * scale, (start + tile) * scale)
        weights[index, inside] = np.clip(depth, 0, 1)[inside]
    weights /= weights.sum(axis=0)
    return [
        Span(start, start + tile, weights[index, start * scale : (start + tile) * scale].astype(np.float32))
        for index, start in enumerate(starts)
    ]
