"""Fonts for layouts: Pillow's own as long as it has the letters, else one that the system has."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import ImageFont

from runtime.errors import RequestError

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SYSTEM_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial.ttf", "Arial Unicode.ttf")
"""Names that Pillow looks for in the system's font folders, in this order. Pillow's own font is ASCII only."""
_NO_LETTER = "\uffff"  # never a letter, so it shows what a font draws for those that it does not have
_SAMPLE_SIZE = 16


@dataclass(frozen=True)
class Face:
    """A font file to draw a text with."""

    file: str | None
    """Name or path; None for Pillow's own."""
    missing: str
    """Letters of the text that it does not have, each once."""

    def sized(self, size: float) -> Font:
        """The font at `size` pixels, at least one."""
        return _load(self.file, max(1, round(size)))


def choose_face(text: str, font: Path | None) -> Face:
    """The font in the file `font`; without one, the font at hand that lacks the fewest letters of `text`.

    Raises:
        OSError: `font` cannot be read.
        RequestError: it is no font, or damaged.
    """
    if font is not None:
        with font.open("rb"):
            return Face(str(font), _missing(str(font), text))
    best = Face(None, _missing(None, text))
    for name in SYSTEM_FONTS:
        if not best.missing:
            break
        if _is_installed(name) and len(missing := _missing(name, text)) < len(best.missing):
            best = Face(name, missing)
    return best


@cache
def _load(file: str | None, size: int) -> Font:
    if file is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(file, size)
    except OSError as error:
        raise RequestError(f"{file} is not a font that FreeType reads: {error}") from error


def _is_installed(name: str) -> bool:
    try:
        _load(name, _SAMPLE_SIZE)
    except ValueError:
        return False
    return True


def _missing(file: str | None, text: str) -> str:
    drawn = _load(file, _SAMPLE_SIZE).getmask
    letters = sorted({letter for letter in text if letter.isprintable() and not letter.isspace()})
    with damage_named(file):
        nothing = bytes(drawn(_NO_LETTER))
        return "".join(letter for letter in letters if bytes(drawn(letter)) == nothing)


@contextlib.contextmanager
def damage_named(file: str | None) -> Iterator[None]:
    """Say which font it is that FreeType has opened and cannot draw: a letter may be damaged and others not."""
    try:
        yield
    except OSError as error:
        raise RequestError(f"the font {file} is damaged: {error}") from error
