"""Pictures as files, with the settings inside: PNG, JPEG and WebP, as the file's suffix says.

PNG holds the settings as JSON in a text chunk. JPEG and WebP hold them in Exif's UserComment, in ASCII with the escapes
of JSON. PNG and WebP keep every pixel as it is.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, features

from runtime.bundle.json_fields import parse
from runtime.console import json_text
from runtime.errors import RequestError

TEXT_KEY = "ideogram4"
"""Name of the PNG text chunk that holds the settings as JSON."""
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""By suffix, in lower case."""
MAX_EXIF = 65000
"""Bytes of settings that JPEG holds: a segment has 65,533, some of which are Exif's own."""
_JPEG_QUALITY = 95
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_ASCII = b"ASCII\0\0\0"
"""What Exif puts in front of a UserComment to say how its letters are coded."""


def check_suffix(file: Path) -> None:
    """Raise RequestError unless the file's suffix says which format to write, and this Pillow can."""
    kind = FORMATS.get(file.suffix.lower())
    if kind is None:
        raise RequestError(f"the output {file} has no suffix that says what to write, wanted {', '.join(FORMATS)}")
    if kind == "WEBP" and not features.check("webp"):
        raise RequestError(f"the output {file} is a WebP file, which this installation of Pillow cannot write")


def check_settings(file: Path, settings: dict[str, Any]) -> None:
    """Raise RequestError when a file of this format cannot hold the settings."""
    if FORMATS[file.suffix.lower()] == "JPEG" and (size := len(json.dumps(settings))) > MAX_EXIF:
        raise RequestError(
            f"the settings of {file} have {size} bytes, and a JPEG file holds {MAX_EXIF}: choose .png or .webp"
        )


def encode(image: np.ndarray, settings: dict[str, Any] | None, file: Path) -> bytes:
    """The content of a picture file (H, W, 3) uint8 in the format of `file`, which passes `check_suffix`."""
    kind = FORMATS[file.suffix.lower()]
    if kind == "PNG":
        return png(image, settings)
    exif = Image.Exif()
    if settings is not None:
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _ASCII + json.dumps(settings).encode("ascii")
    how: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {"quality": _JPEG_QUALITY, "subsampling": 0}
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, exif=exif, **how)
    return buffer.getvalue()


def png(image: np.ndarray, settings: dict[str, Any] | None) -> bytes:
    """A PNG file of a picture (H, W, 3) uint8 with `settings` as JSON in an iTXt chunk."""
    info = PngImagePlugin.PngInfo()
    if settings is not None:
        info.add_itxt(TEXT_KEY, json_text(settings))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def read_settings(file: Path) -> dict[str, Any]:
    """The settings in a file made here; OSError or ValueError when it is no whole picture or has none."""
    try:
        with Image.open(file, formats=sorted(set(FORMATS.values()))) as image:
            image.load()
            text = getattr(image, "text", {}).get(TEXT_KEY) if image.format == "PNG" else _comment(image)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise what they like: SyntaxError, struct.error, …
        raise ValueError(f"{file} is not a readable picture: {error}") from error
    if text is None:
        raise ValueError(f"{file} holds no settings: it was not made by trt-generate")
    settings = parse(text, f"the settings text in {file}")
    if not isinstance(settings, dict):
        raise ValueError(f"the settings in {file} are no object")
    return settings


def _comment(image: Image.Image) -> bytes | None:
    """Exif's UserComment, where it is in ASCII."""
    comment = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    return comment.removeprefix(_ASCII) if isinstance(comment, bytes) and comment.startswith(_ASCII) else None


def numbered(file: Path, count: int) -> list[Path]:
    """``out.png`` for one picture, ``out-0.png``, ``out-1.png``, … for several."""
    if count == 1:
        return [file]
    return [file.with_name(f"{file.stem}-{index}{file.suffix}") for index in range(count)]
