"""Pictures drawn by program: coloured shapes and short words on a coloured background.

A scene is data; `draw` turns it into pixels. Scenes of a seed are the same on every machine. One in ten combinations
of colour, shape, place and background is held out: `sample_scene` never makes it, and the evaluation asks for it.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 128
"""Pixels on each side of a picture."""
COLORS = {
    "red": (230, 25, 35),
    "green": (30, 160, 60),
    "blue": (30, 70, 230),
    "yellow": (250, 220, 30),
    "purple": (165, 40, 185),
    "cyan": (40, 210, 230),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart")
ROWS, COLUMNS = ("top", "", "bottom"), ("left", "", "right")
PLACES = tuple(f"{row} {column}".strip() or "center" for row in ROWS for column in COLUMNS)
"""Names of the cells of a 3 x 3 grid, row by row."""
RADII = {"small": (15.0, 17.0), "": (20.0, 22.0), "large": (26.0, 30.0)}
"""Half the side of a shape's box in pixels, by the word for its size."""
WORDS = ("HI", "YES", "NO", "OK", "CAT", "SUN", "GO", "BOX")
HELD_OUT = 10
"""One combination in this many is never shown in training."""

_MARGIN = 4
"""Pixels of background that are left at the border."""
_JITTER = 4.0
"""Pixels by which a shape may miss the centre of its cell."""
_OVERSAMPLING = 4
_WORD_HEIGHT = 26
_TRIES = 200


@dataclass(frozen=True)
class Element:
    """A shape or a word; its box is a square around the centre, or the word's own box."""

    kind: str
    """One of `SHAPES`, or the letters of a word in capitals."""
    color: str
    x: float
    """Centre in pixels from the left."""
    y: float
    """Centre in pixels from the top."""
    radius: float
    """Half the height of the box in pixels."""
    size: str = ""
    """The word for the radius, a key of `RADII`."""
    named_place: bool = True
    """Whether the element stands at a cell of the grid, so that the caption can name it."""

    @property
    def is_word(self) -> bool:
        return self.kind not in SHAPES

    @property
    def place(self) -> str:
        """Name of the grid cell of the centre."""
        return PLACES[3 * min(int(3 * self.y / SIZE), 2) + min(int(3 * self.x / SIZE), 2)]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in pixels."""
        half = self.radius if not self.is_word else _word_width(self.kind) / 2
        return self.x - half, self.y - self.radius, self.x + half, self.y + self.radius


@dataclass(frozen=True)
class Scene:
    """A background colour and one to three elements that do not touch."""

    background: str
    elements: tuple[Element, ...]


def is_held_out(color: str, shape: str, place: str, background: str) -> bool:
    """Whether a combination is kept for the evaluation."""
    return zlib.crc32(f"{color} {shape} {place} {background}".encode()) % HELD_OUT == 0


def cell_center(place: str) -> tuple[float, float]:
    """Pixels (x, y) of the middle of a grid cell."""
    row, column = divmod(PLACES.index(place), 3)
    return SIZE * (2 * column + 1) / 6, SIZE * (2 * row + 1) / 6


def sample_scene(random: np.random.Generator) -> Scene:
    """A scene without held-out combinations: mostly one shape, sometimes two or three, sometimes a word."""
    count = int(random.choice((1, 2, 3), p=(0.7, 0.22, 0.08)))
    on_grid = random.random() < 0.88
    with_word = random.random() < 0.06
    background = str(random.choice(tuple(COLORS)))
    colors = [name for name in COLORS if name != background]
    elements: list[Element] = []
    for index in range(count):
        for _ in range(_TRIES):
            kind = str(random.choice(WORDS if with_word and index == 0 else SHAPES))
            element = _place(random, kind, str(random.choice(colors)), on_grid, alone=count == 1)
            known = element.is_word or not is_held_out(element.color, element.kind, element.place, background)
            if known and not any(_touch(element, other) for other in elements):
                elements.append(element)
                break
    return Scene(background, tuple(elements))


def _place(random: np.random.Generator, kind: str, color: str, on_grid: bool, alone: bool) -> Element:
    if kind in WORDS:
        size, radius = "", _WORD_HEIGHT / 2
        half = _word_width(kind) / 2
    else:
        size = str(random.choice(tuple(RADII) if alone else ("small", "")))
        radius = half = float(random.uniform(*RADII[size]))
    if on_grid:
        middle = cell_center(str(random.choice(PLACES)))
        x, y = (value + random.uniform(-_JITTER, _JITTER) for value in middle)
    else:
        x, y = random.uniform(0, SIZE, 2)
    low_x, low_y = half + _MARGIN, radius + _MARGIN
    x, y = float(np.clip(x, low_x, SIZE - low_x)), float(np.clip(y, low_y, SIZE - low_y))
    return Element(kind, color, x, y, radius, size, on_grid)


def _touch(one: Element, other: Element) -> bool:
    a, b = one.box, other.box
    gap = 2
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def draw(scene: Scene) -> np.ndarray:
    """The picture (SIZE, SIZE, 3) uint8, edges smoothed by drawing it four times as large."""
    large = Image.new("RGB", (SIZE * _OVERSAMPLING,) * 2, COLORS[scene.background])
    pen = ImageDraw.Draw(large)
    for element in scene.elements:
        _draw_element(pen, element, COLORS[element.color], COLORS[scene.background])
    return np.asarray(large.reduce(_OVERSAMPLING))


def _draw_element(
    pen: ImageDraw.ImageDraw, element: Element, color: tuple[int, int, int], background: tuple[int, int, int]
) -> None:
    x, y, r = (_OVERSAMPLING * value for value in (element.x, element.y, element.radius))
    if element.is_word:
        pen.text((x, y), element.kind, fill=color, font=_font(), anchor="mm", stroke_width=_OVERSAMPLING)
    elif element.kind in ("circle", "ring"):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=color)
        if element.kind == "ring":
            hole = 0.55 * r
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=background)
    else:
        pen.polygon([(x + r * px, y + r * py) for px, py in _outline(element.kind)], fill=color)


@cache
def _outline(shape: str) -> Sequence[tuple[float, float]]:
    """Corners of a shape in the square from -1 to 1, y downwards."""
    if shape == "square":
        return ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85))
    if shape == "triangle":
        return ((0, -0.95), (1, 0.85), (-1, 0.85))
    if shape == "cross":
        arm = 0.34
        return (
            (-arm, -1),
            (arm, -1),
            (arm, -arm),
            (1, -arm),
            (1, arm),
            (arm, arm),
            (arm, 1),
            (-arm, 1),
            (-arm, arm),
            (-1, arm),
            (-1, -arm),
            (-arm, -arm),
        )
    if shape == "star":
        radii = (1.0, 0.42)
        return [
            (radii[i % 2] * math.sin(i * math.pi / 5), 0.08 - radii[i % 2] * math.cos(i * math.pi / 5))
            for i in range(10)
        ]
    if shape == "heart":
        angles = np.linspace(0, 2 * math.pi, 64, endpoint=False)
        ys = 13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)
        return [(float(px), float(py)) for px, py in zip(np.sin(angles) ** 3, -(ys + 2.5) / 14.5, strict=True)]
    raise ValueError(f"shape is {shape!r}, wanted one of {', '.join(SHAPES)}")


@cache
def _font() -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(_WORD_HEIGHT * _OVERSAMPLING)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


@cache
def _word_width(word: str) -> float:
    """Pixels."""
    return _font().getlength(word) / _OVERSAMPLING
