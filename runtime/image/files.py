"""Picture files that a user gives: read into plain arrays, whatever camera or program wrote them.

A file is turned as its EXIF orientation says, transparency is laid over white, and greyscale, palettes, CMYK and 16
bits become 8-bit RGB. Of a file with several frames the first one counts. Colour profiles are not applied.
"""

import io
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from runtime.errors import SAID, MissingFileError, RequestError, cut

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
"""Pillow's decoders that are tried. Others can run programs (EPS) or are not pictures of pixels."""
_WHITE_FROM = 128
"""Grey level, of 255, from which a mask's pixel counts as white."""


def read_rgb(file: Path) -> np.ndarray:
    """The picture in `file` as (H, W, 3) uint8.

    Raises:
        MissingFileError: there is no such file.
        RequestError: it is not a picture of the known formats, is damaged, has floating-point pixels, or has more
            pixels than Pillow takes for safe (89 million), which a small file can claim to unpack to.
        OSError: it cannot be read.
    """
    try:
        with file.open("rb") as stream:  # what the system says of a file is not what Pillow says of its content
            return _decoded(stream, f"the picture {file}")
    except FileNotFoundError as error:
        raise MissingFileError(error.errno, error.strerror, str(file)) from error


def decode_rgb(data: bytes, label: str, max_pixels: int | None = None) -> np.ndarray:
    """The picture in the bytes of a file as (H, W, 3) uint8, as `read_rgb` reads it.

    Args:
        data: the whole file.
        label: what messages call the picture, such as ``the image``.
        max_pixels: refuse larger ones before they are unpacked; None for Pillow's own limit.
    """
    return _decoded(io.BytesIO(data), label, max_pixels)


def _decoded(source: IO[bytes], label: str, max_pixels: int | None = None) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(source, formats=FORMATS) as image:
                if max_pixels is not None and image.width * image.height > max_pixels:
                    raise _RefusedError(f"{label} is {image.width}x{image.height}, wanted at most {max_pixels} pixels")
                image.load()
                return rgb_array(image, label)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise RequestError(f"{label} is too large: {error}") from error
        except UnidentifiedImageError as error:
            what = label.removeprefix("the picture ")
            raise RequestError(f"{what} is not a picture that can be read, wanted {', '.join(FORMATS)}") from error
        except (MemoryError, _RefusedError):
            raise
        except Exception as error:  # Pillow's decoders raise what they like: OSError, SyntaxError, struct.error, …
            raise RequestError(f"{label} is damaged: {cut(str(error), SAID)}") from error


def rgb_array(image: Image.Image, label: str) -> np.ndarray:
    """A Pillow image of any mode as (H, W, 3) uint8, turned as its EXIF orientation says.

    Raises:
        RequestError: its pixels are floating-point numbers, or integers beyond 16 bits.
    """
    # Only where there is something to turn: each step that copies a large picture takes as much memory again.
    turned = ImageOps.exif_transpose(image) if image.getexif().get(ExifTags.Base.Orientation, 1) != 1 else image
    return np.asarray(_rgb(turned, label))


def read_mask(file: Path) -> np.ndarray:
    """The mask in `file` as (H, W) bool, True where it is white (grey from 128 up); errors as for `read_rgb`."""
    return to_mask(read_rgb(file))


def to_mask(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) or (H, W) uint8 to (H, W) bool: True where it is white; transparent parts of a file count as white."""
    grey = pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L"))
    return grey >= _WHITE_FROM


class _RefusedError(RequestError):
    """A picture that was read but is not of a kind that is taken."""


def _rgb(image: Image.Image, label: str) -> Image.Image:
    if image.mode == "F":
        raise _RefusedError(f"{label} has floating-point pixels, wanted 8 or 16 bits")
    if image.mode.startswith("I"):  # I;16 of several byte orders, and I: 16-bit greyscale in 32 bits
        image = _eight_bits(image, label)
    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image, label: str) -> Image.Image:
    levels = np.asarray(image)
    if levels.min() < 0 or levels.max() > 65535:
        raise _RefusedError(f"{label} has levels from {levels.min()} to {levels.max()}, wanted 0 to 65535")
    scaled = levels.astype(np.uint32)  # holds 255 * 65535
    scaled *= 255
    scaled += 32767
    scaled //= 65535
    return Image.fromarray(scaled.astype(np.uint8))
