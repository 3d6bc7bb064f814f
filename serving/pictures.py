"""Pictures and masks in a request: files as bytes, raw or in base64, with limits.

A value is the content of a PNG, JPEG, WebP, TIFF, BMP, GIF or PPM file. JSON can only carry text, so a value may also
be that content in base64, with or without ``data:image/png;base64,`` in front. No such file looks like base64.
"""

import base64
import binascii
import re

import numpy as np

from runtime.errors import RequestError
from runtime.image.files import decode_rgb, to_mask

MAX_BYTES = 32 << 20
"""Size of a file, before base64. A 16-bit PNG of 2048 x 2048 has at most 25 MB."""
MAX_PIXELS = 4096 * 4096
"""A picture in RGB then takes 50 MB; one of 2048 x 2048, the largest that the model makes, a quarter of it."""
_BASE64 = re.compile(rb"(?:data:[\w/+.-]+;base64,)?([A-Za-z0-9+/\s]++={0,2}\s*+)")
"""Possessive: white space fits both parts, and trying every split would take hours for a megabyte of it."""


def read_picture(name: str, value: bytes) -> np.ndarray:
    """The pixels of an input: (H, W, 3) uint8, for the input ``mask`` (H, W) bool, True where it is white.

    Raises:
        RequestError: it is too large, damaged, or not a picture; the message names the input.
    """
    data = _content(name, value)
    if len(data) > MAX_BYTES:
        raise RequestError(f"the input {name!r} has {len(data)} bytes, wanted at most {MAX_BYTES}")
    pixels = decode_rgb(data, f"the input {name!r}", MAX_PIXELS)
    return to_mask(pixels) if name == "mask" else pixels


def _content(name: str, value: bytes) -> bytes:
    """The file's content. Longer values than any allowed one are left as they are, and refused by their length."""
    if len(value) > 2 * MAX_BYTES or (match := _BASE64.fullmatch(value)) is None:
        return value
    try:
        return base64.b64decode(b"".join(match[1].split()), validate=True)
    except binascii.Error as error:
        raise RequestError(f"the input {name!r} is neither a picture nor base64 of one: {error}") from error
