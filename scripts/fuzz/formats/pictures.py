"""Pictures and masks to start from."""

import contextlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from runtime.bundle.manifest import SizeSpec
from runtime.image.init_image import Source, prepare
from scripts.fuzz.case import Case, World
from scripts.fuzz.mutation import pictures
from serving.pictures import read_picture

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK")
_SIZES = SizeSpec(16, 256, 2048, 1024, 6.0)
LOCAL_PEAK = 1200 << 20
"""A file may hold 89 million pixels, which is Pillow's limit; with transparency they are in memory three times."""
_SERVED_PEAK = 512 << 20
"""A request's may hold 17 million."""


def image(world: World, folder: Path) -> Case:
    """A picture that a user starts from."""
    file = folder / "house.png"

    def read() -> None:
        prepare(Source(file, fit="crop"), _SIZES, 256, 256)

    return Case(file, examples(), pictures.mutated, read, (file.name,), peak_bytes=LOCAL_PEAK)


def mask(world: World, folder: Path) -> Case:
    """A mask of a picture that is in order."""
    file = folder / "mask.png"
    pixels = np.zeros((24, 24, 3), np.uint8)

    def read() -> None:
        prepare(Source(pixels, fit="crop", mask=file), _SIZES, 256, 256)

    return Case(file, examples(), pictures.mutated, read, (file.name,), peak_bytes=LOCAL_PEAK)


def served_picture(world: World, folder: Path) -> Case:
    """A picture in a request to Triton."""
    file = folder / "picture"

    def read() -> None:
        read_picture("image", file.read_bytes())
        read_picture("mask", file.read_bytes())

    return Case(file, examples(), pictures.mutated, read, ("image", "mask"), peak_bytes=_SERVED_PEAK)


def examples() -> tuple[bytes, ...]:
    """Small pictures (24, 24) of each format, in each mode that it has; all of their pixels are white."""
    found = []
    for kind in _FORMATS:
        for mode in _MODES:
            stream = io.BytesIO()
            with contextlib.suppress(OSError, ValueError):  # the format has no such mode
                _white(mode).save(stream, kind)
                found.append(stream.getvalue())
    return tuple(found)


def _white(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.full((24, 24), 65535, np.uint16))
    return Image.new("RGB", (24, 24), "white").convert(mode)
