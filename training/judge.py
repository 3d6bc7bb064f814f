"""What a picture shows, detected by program: background, and the colour, place and shape of each region on it.

The background is the palette colour nearest to the median of the border. Regions are connected pixels that differ from
it; a region's colour is the palette colour nearest to its median, its place the grid cell of the middle of its box,
and its shape the template with the largest overlap (intersection over union of masks, scaled to one box).
"""

from dataclasses import dataclass, fields
from functools import cache

import numpy as np
from PIL import Image

from training.scenes import COLORS, PLACES, RADII, SHAPES, SIZE, Element, Scene, cell_center, draw

_DIFFERENCE = 70.0
"""Euclidean RGB distance from the background at which a pixel belongs to a region; the nearest two colours of the
palette are 139 apart, so edge pixels belong to the side that they are nearer to."""
_SMALLEST = 60
"""Pixels; smaller regions are specks. The smallest shape that is drawn, a small ring, has 350."""
_TEMPLATE = 32
_BORDER = 2


@dataclass(frozen=True)
class Region:
    """A connected part of a picture."""

    color: str
    shape: str
    x: float
    """Middle of the box, pixels from the left."""
    y: float
    """Middle of the box, pixels from the top."""
    area: int

    @property
    def place(self) -> str:
        return PLACES[3 * min(int(3 * self.y / SIZE), 2) + min(int(3 * self.x / SIZE), 2)]


@dataclass(frozen=True)
class Verdict:
    """Which parts of a prompt a picture got right; for several shapes, only if all of them are."""

    background: bool
    color: bool
    place: bool
    shape: bool


ASPECTS = tuple(field.name for field in fields(Verdict))


def share(verdicts: list[Verdict], aspect: str) -> float:
    """Share of pictures that got an aspect right, 0 to 1."""
    return sum(getattr(verdict, aspect) for verdict in verdicts) / len(verdicts)


def judge(picture: np.ndarray, scene: Scene) -> Verdict:
    """Compare a picture (SIZE, SIZE, 3) uint8 with the scene that was asked for.

    One asked shape is looked for in the largest region; of several, each in the free region nearest to its place.
    """
    background, regions = analyze(picture)
    pairs = []
    for element in scene.elements:
        region = _region_for(element, regions, alone=len(scene.elements) == 1)
        regions = [other for other in regions if other is not region]
        pairs.append((element, region))
    return Verdict(
        background == scene.background,
        all(region is not None and region.color == element.color for element, region in pairs),
        all(region is not None and region.place == element.place for element, region in pairs),
        all(region is not None and region.shape == element.kind for element, region in pairs),
    )


def _region_for(element: Element, regions: list[Region], alone: bool) -> Region | None:
    if alone:
        return max(regions, key=lambda region: region.area, default=None)
    x, y = cell_center(element.place)
    return min(regions, key=lambda region: (region.x - x) ** 2 + (region.y - y) ** 2, default=None)


def analyze(picture: np.ndarray) -> tuple[str, list[Region]]:
    """The background's colour and the regions of a picture (SIZE, SIZE, 3) uint8."""
    pixels = picture.astype(np.float32)
    frame = np.ones(pixels.shape[:2], dtype=bool)
    frame[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    ground = np.median(pixels[frame], axis=0)
    differs = np.linalg.norm(pixels - ground, axis=-1) > _DIFFERENCE
    regions = [_region(pixels, mask) for mask in _components(differs)]
    return _nearest_color(ground), regions


def _components(mask: np.ndarray) -> list[np.ndarray]:
    """Masks of the 4-connected parts of `mask` that have at least `_SMALLEST` pixels."""
    free, found = mask.copy(), []
    for start in zip(*np.nonzero(mask), strict=True):
        if not free[start]:
            continue
        part, edge = np.zeros_like(mask), [start]
        free[start] = False
        while edge:
            row, column = edge.pop()
            part[row, column] = True
            for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if 0 <= near[0] < SIZE and 0 <= near[1] < SIZE and free[near]:
                    free[near] = False
                    edge.append(near)
        if part.sum() >= _SMALLEST:
            found.append(part)
    return found


def _region(pixels: np.ndarray, mask: np.ndarray) -> Region:
    (top, bottom), (left, right) = ((np.nonzero(mask.any(axis=a))[0][[0, -1]]) for a in (1, 0))
    inner = _erode(mask)
    color = _nearest_color(np.median(pixels[inner if inner.any() else mask], axis=0))
    thumbnail = _thumbnail(mask)
    overlap = {shape: max(_overlap(thumbnail, known) for known in _templates(shape)) for shape in SHAPES}
    return Region(
        color, max(overlap, key=overlap.__getitem__), (left + right + 1) / 2, (top + bottom + 1) / 2, int(mask.sum())
    )


def _erode(mask: np.ndarray) -> np.ndarray:
    """Pixels whose four neighbours are in the mask too: none of an edge's mixed colours."""
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _nearest_color(rgb: np.ndarray) -> str:
    return min(COLORS, key=lambda name: float(np.sum((np.array(COLORS[name]) - rgb) ** 2)))


def _thumbnail(mask: np.ndarray) -> np.ndarray:
    """The mask's box, widened to a square, at _TEMPLATE x _TEMPLATE."""
    (top, bottom), (left, right) = ((np.nonzero(mask.any(axis=a))[0][[0, -1]]) for a in (1, 0))
    height, width = bottom - top + 1, right - left + 1
    side = max(height, width)
    square = np.zeros((side, side), dtype=np.uint8)
    row, column = (side - height) // 2, (side - width) // 2
    square[row : row + height, column : column + width] = 255 * mask[top : bottom + 1, left : right + 1]
    return np.asarray(Image.fromarray(square).resize((_TEMPLATE, _TEMPLATE), Image.Resampling.BOX)) > 127


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))


@cache
def _templates(shape: str) -> tuple[np.ndarray, ...]:
    """Thumbnails of the shape as it is drawn, one for each size."""
    thumbnails = []
    for low, high in RADII.values():
        picture = draw(Scene("white", (Element(shape, "black", SIZE / 2, SIZE / 2, (low + high) / 2),)))
        thumbnails.append(_thumbnail(picture[..., 0] < 128))
    return tuple(thumbnails)
