"""A caption drawn as a plan of the picture: where its elements go and what they say, before anything is generated.

Each element is a numbered box (the number is its index in ``elements``) in its own first colour that shows on paper,
else in the next such colour of the style's palette, else in one of ours. Boxes of ``text`` elements hold their letters
as large as fits; the others hold their description, as far as there is room beside what is there already. Elements
without a box, and the background, are listed at the bottom.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from runtime.atomic_files import check_outputs, write_files
from runtime.image.output_files import encode
from runtime.layout.colours import BLACK, VISIBLE, WHITE, Colour, contrast, ink, mix, parse_colour
from runtime.layout.fonts import Face, Font, choose_face, damage_named
from runtime.prompt.caption import Caption, Element
from runtime.prompt.caption_schema import BBOX_LIMIT

Rectangle = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the canvas."""

PAPER, GRID, MUTED = (250, 248, 243), (236, 233, 225), (104, 100, 92)
OURS = ("#3B6FB6", "#D1495B", "#2E8B57", "#B8690F", "#7A4FA3", "#00798C", "#9C5B3C", "#C03A86")
_OVERSAMPLING = 2  # Pillow draws lines and corners without smoothing
_SHORTEST = 3
"""Letters of a cut word that a line must have room for."""
_LARGEST = 1 / 5
"""Height of the largest letters, as a share of the picture's shorter side."""


def draw_layout(caption: Caption, width: int, height: int, face: Face) -> np.ndarray:
    """The boxes and texts of `caption`, written in the font `face`: (height, width, 3) uint8.

    RequestError if the font is damaged.
    """
    with damage_named(face.file):
        return np.asarray(_Sheet(width, height, face).draw(caption).convert("RGB"))


def write_layout(file: Path, caption: Caption, size: tuple[int, int], font: Path | None, overwrite: bool) -> str:
    """Draw a caption at a picture's size. A file that is the same already stays.

    Args:
        file: picture to write, in the format that its suffix says.
        caption: to draw.
        size: width and height of the picture, in pixels.
        font: TrueType or OpenType file; None for the installed font that suits the caption's letters best.
        overwrite: whether another file may be replaced.

    Returns:
        Letters that the font does not have.

    Raises:
        FileExistsError: the file is another one and may not be replaced.
        OSError, RequestError: `font` is not a font, or is damaged.
    """
    words = (caption.background, *(f"{element.desc}{element.text or ''}" for element in caption.elements))
    face = choose_face("".join(words), font)
    drawn = encode(draw_layout(caption, *size, face), None, file)
    if not file.is_file() or file.read_bytes() != drawn:
        check_outputs([file], overwrite)
        write_files([file], [drawn], overwrite)
    return face.missing


class _Sheet:
    """The canvas while it is drawn on."""

    def __init__(self, width: int, height: int, face: Face) -> None:
        self.size, self.face = (width, height), face
        self.width, self.height = width * _OVERSAMPLING, height * _OVERSAMPLING
        side, mean = min(width, height), (width * height) ** 0.5
        self.unit = max(side / 42, mean / 60, 12) * _OVERSAMPLING  # 0.8 of it are the small letters, 10 pixels at least
        self.largest = side * _LARGEST * _OVERSAMPLING
        self.image = Image.new("RGB", (self.width, self.height), PAPER)
        self.pen = ImageDraw.Draw(self.image, "RGBA")
        self.taken: list[Rectangle] = []

    def draw(self, caption: Caption) -> Image.Image:
        self._grid()
        palette = caption.style.color_palette if caption.style else None
        colours = dict(enumerate(_colours(caption.elements, palette or ())))
        boxed = [index for index, element in enumerate(caption.elements) if element.bbox]
        boxed.sort(key=lambda index: -_area(self._box(caption.elements[index])))
        boxes = [self._box(caption.elements[index]) for index in boxed]
        for index, box in zip(boxed, boxes, strict=True):
            self._panel(box, colours[index])
        for index, box in zip(boxed, boxes, strict=True):
            self._corner(index, box, colours[index])
        # The smallest boxes have the least choice of where to write, and larger ones write around them.
        for place in reversed(range(len(boxed))):
            self._words(caption.elements[boxed[place]], boxes[place], boxes[place + 1 :], colours[boxed[place]])
        self._list(caption, colours, boxes)
        return self.image.resize(self.size, Image.Resampling.LANCZOS)

    def _box(self, element: Element) -> Rectangle:
        top, left, bottom, right = element.bbox or (0, 0, 0, 0)
        across, down = self.width / BBOX_LIMIT, self.height / BBOX_LIMIT
        return left * across, top * down, right * across, bottom * down

    def _grid(self) -> None:
        for part in range(1, 10):
            x, y = self.width * part / 10, self.height * part / 10
            self.pen.line((x, 0, x, self.height), GRID, width=_OVERSAMPLING)
            self.pen.line((0, y, self.width, y), GRID, width=_OVERSAMPLING)

    def _panel(self, box: Rectangle, colour: Colour) -> None:
        left, top, right, bottom = box
        radius = min(self.unit * 0.5, (right - left) / 2, (bottom - top) / 2)
        line = max(_OVERSAMPLING, round(self.unit * 0.14))
        self.pen.rounded_rectangle(box, radius, (*colour, 36), (*colour, 255), line)

    def _corner(self, index: int, box: Rectangle, colour: Colour) -> None:
        """The tag of a box: in its upper left corner, above that where it would cover what the box says."""
        left, top, right, bottom = box
        small = right - left < self.unit * 5 or bottom - top < self.unit * 3
        self._number(index, left, top - self.unit * 1.2 if small else top, colour)

    def _number(self, index: int, left: float, top: float, colour: Colour) -> None:
        """A tag with an element's index, moved inside the picture and off what is there."""
        font = self.face.sized(self.unit * 0.8)
        wide, high = font.getlength(str(index)) + self.unit * 0.7, self.unit * 1.2
        left, top = min(left, self.width - wide), max(0, min(top, self.height - high))
        while left + wide <= self.width and not self._is_free((left, top, left + wide, top + high)):
            left += wide * 0.25
        left = min(left, self.width - wide)
        tag = (left, top, left + wide, top + high)
        self.taken.append(tag)
        self.pen.rounded_rectangle(tag, self.unit * 0.4, (*colour, 255), (*PAPER, 255), _OVERSAMPLING)
        letters = max((BLACK, WHITE), key=lambda end: contrast(end, colour))
        self.pen.text((left + wide / 2, top + high / 2), str(index), (*letters, 255), font, anchor="mm")

    def _words(self, element: Element, box: Rectangle, above: list[Rectangle], colour: Colour) -> None:
        if element.text is not None and element.text.strip():
            self._letters(element.text.splitlines(), box, colour)
        else:
            self._description(element.desc, box, above, colour)

    def _letters(self, lines: list[str], box: Rectangle, colour: Colour) -> None:
        """The element's own letters, as large as the box allows, in its middle."""
        left, top, right, bottom = box
        measured = self.face.sized(100)
        widest = max(measured.getlength(line) for line in lines)
        room = min((right - left) * 0.9 / max(widest, 1), (bottom - top) * 0.9 / (120 * len(lines)))
        size = min(100 * room, self.largest)
        if size < self.unit * 0.4:
            return
        font = self.face.sized(size)
        x, y = (left + right) / 2, (top + bottom) / 2 - size * 0.6 * (len(lines) - 1)
        for number, line in enumerate(lines):
            place = (x, y + number * size * 1.2)
            self._write(place, line, font, ink(colour, mix(colour, PAPER, 0.15)), "mm")
            half = font.getlength(line) / 2
            self.taken.append((x - half, place[1] - size * 0.6, x + half, place[1] + size * 0.6))

    def _description(self, text: str, box: Rectangle, above: list[Rectangle], colour: Colour) -> None:
        """The description from the top of the box down, around what lies there; nothing where there is no room."""
        left, top, right, bottom = box
        font, high, margin = self.face.sized(self.unit * 0.8), self.unit * 1.05, self.unit * 0.5
        indent = self.unit * 1.2 if right - left > self.unit * 10 else 0
        left, right = max(left, 0) + margin + indent, min(right, self.width) - margin
        letters = ink(mix(colour, MUTED, 0.6), mix(colour, PAPER, 0.15))
        y, end, words = top + margin, min(bottom, self.height) - margin / 2, text.split()
        while words and y + high <= end:
            start, stop = self._run((left, y, right, y + high), above)
            line, words = _fit(words, font, stop - start, last=y + 2 * high > end)
            if line:
                self._write((start, y + high / 2), line, font, letters)
                self.taken.append((start, y, start + font.getlength(line), y + high))
            y += high

    def _list(self, caption: Caption, colours: dict[int, Colour], boxes: list[Rectangle]) -> None:
        """What has no box, in the lowest free rows: the background last, the elements above it."""
        rows = [
            (index, f"“{element.text}” {element.desc}" if element.text else element.desc)
            for index, element in enumerate(caption.elements)
            if not element.bbox
        ]
        y = self._row(self.height, None, caption.background, MUTED, boxes)
        for index, text in reversed(rows):
            y = self._row(y, index, text, colours[index], boxes)

    def _row(self, below: float, index: int | None, text: str, colour: Colour, boxes: list[Rectangle]) -> float:
        """Write a row above `below`, outside the boxes if there is room, and return its upper edge."""
        font, high, margin = self.face.sized(self.unit * 0.8), self.unit * 1.35, self.unit * 0.5
        words = text.split()
        length = font.getlength(" ".join(words))
        for obstacles in (boxes, []):
            y: float = below - margin / 2 - high
            while y > 0:
                start, stop = self._run((margin, y, self.width - margin, y + high), obstacles)
                if stop - start >= min(self.width * 0.6, length + self.unit * 2.5):
                    if index is not None:
                        self._number(index, start, y + (high - self.unit * 1.2) / 2, colour)
                        start = self.taken[-1][2] + margin
                    line, _ = _fit(words, font, stop - start, last=True)
                    self._write((start, y + high / 2), line, font, MUTED)
                    self.taken.append((start, y, start + font.getlength(line), y + high))
                    return y
                y -= high / 3
        return below

    def _run(self, row: Rectangle, obstacles: list[Rectangle]) -> tuple[float, float]:
        """Left and right edge of the widest part of a row that is free of what is written and of the obstacles."""
        left, top, right, bottom = row
        gap = self.unit * 0.3
        blocks = sorted((b[0] - gap, b[2] + gap) for b in (*self.taken, *obstacles) if b[1] < bottom and top < b[3])
        edges, start = [], left
        for first, last in blocks:
            edges.append((start, min(first, right)))
            start = max(start, last)
        return max((*edges, (start, right)), key=lambda run: run[1] - run[0])

    def _write(self, place: tuple[float, float], text: str, font: Font, colour: Colour, anchor: str = "lm") -> None:
        """Text with a rim of paper, so that lines under it do not cross it."""
        rim = max(1, round(self.unit * 0.12))
        self.pen.text(place, text, (*colour, 255), font, anchor, stroke_width=rim, stroke_fill=(*PAPER, 200))
        self.pen.text(place, text, (*colour, 255), font, anchor)

    def _is_free(self, area: Rectangle) -> bool:
        left, top, right, bottom = area
        return not any(t[0] < right and left < t[2] and t[1] < bottom and top < t[3] for t in self.taken)


def _area(box: Rectangle) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _colours(elements: tuple[Element, ...], palette: tuple[str, ...]) -> Iterator[Colour]:
    """A colour for each element that shows on paper."""
    own = [next(iter(_visible(element.color_palette or ())), None) for element in elements]
    spare = cycle([colour for colour in _visible(palette) if colour not in own] + _visible(OURS))
    for colour in own:
        yield colour or next(spare)


def _visible(palette: tuple[str, ...]) -> list[Colour]:
    colours = map(parse_colour, palette)
    return [colour for colour in colours if contrast(colour, PAPER) >= VISIBLE]


def _fit(words: list[str], font: Font, width: float, last: bool) -> tuple[str, list[str]]:
    """As many words as fit into a line, and the rest; the last line ends in an ellipsis when words are left.

    Scripts without spaces have few words, so one that is too long for a line of its own is cut.
    """
    count = _longest(lambda end: " ".join(words[:end]), len(words), font, width)
    if count == len(words):
        return " ".join(words), []
    if last:
        count = _longest(lambda end: " ".join(words[:end]) + " …", count, font, width)
    tail = " …" if last else ""
    if count:
        return " ".join(words[:count]) + tail, [] if last else words[count:]
    letters = _longest(lambda end: words[0][:end] + tail, len(words[0]), font, width)
    if letters < _SHORTEST:
        return "", words
    return words[0][:letters] + tail, [] if last else [words[0][letters:], *words[1:]]


def _longest(part: Callable[[int], str], count: int, font: Font, width: float) -> int:
    """The largest end up to `count` for which `part` is not wider than `width`; 0 if there is none."""
    high = 1  # most of a long text is far too wide, and measuring it takes time
    while high < count and font.getlength(part(high)) <= width:
        high *= 2
    return bisect_right(range(1, min(high, count) + 1), width, key=lambda end: font.getlength(part(end)))
