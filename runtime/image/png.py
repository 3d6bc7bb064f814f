"""PNG files with the settings inside."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

TEXT_KEY = "ideogram4"
"""Name of the PNG text chunk that holds the settings as JSON."""


def png(image: np.ndarray, settings: dict[str, Any]) -> bytes:
    """A PNG file of a picture (H, W, 3) uint8 with `settings` as JSON in an iTXt chunk."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(TEXT_KEY, json.dumps(settings, ensure_ascii=False))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def read_settings(file: Path) -> dict[str, Any]:
    """The settings in a PNG made here; OSError or ValueError when it is not a whole picture, or has none."""
    try:
        with Image.open(file) as image:
            image.load()
            text = getattr(image, "text", {}).get(TEXT_KEY)
    except (SyntaxError, Image.DecompressionBombError) as error:  # Pillow's word for some broken PNGs
        raise ValueError(f"{file} is not a readable PNG: {error}") from error
    if text is None:
        raise ValueError(f"{file} has no text chunk {TEXT_KEY!r}: it was not made by trt-generate")
    settings = json.loads(text)
    if not isinstance(settings, dict):
        raise ValueError(f"the text chunk {TEXT_KEY!r} of {file} holds no object")
    return settings


def numbered(file: Path, count: int) -> list[Path]:
    """``out.png`` for one picture, ``out-0.png``, ``out-1.png``, … for several."""
    if count == 1:
        return [file]
    return [file.with_name(f"{file.stem}-{index}{file.suffix}") for index in range(count)]
