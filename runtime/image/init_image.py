"""Image-to-image: what is asked for, and the checked picture that another one starts from."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle.manifest import SizeSpec
from runtime.errors import RequestError
from runtime.image.files import read_mask, read_rgb, to_mask
from runtime.image.inpaint import FEATHER
from runtime.image.resize import geometry, target_size

STRENGTH = 0.6
"""How far a picture is taken back to noise when nothing is said; with a mask it is 1, all the way."""


Given = tuple[np.ndarray, np.ndarray | None]
"""A picture (H, W, 3) uint8, and its mask (H, W) bool, True where it is painted anew; None without one."""


@dataclass(frozen=True, eq=False)
class Source:
    """A picture to start from, as it is asked for."""

    image: Path | np.ndarray
    """A file, or (H, W, 3) uint8."""
    strength: float | None = None
    """0 gives the picture back, 1 keeps almost nothing of it; None for 0.6, or 1 with a mask."""
    fit: str | None = None
    """One of `runtime.image.resize.FITS`; None where the aspect ratio must be the result's."""
    mask: Path | np.ndarray | None = None
    """A file, (H, W) bool, or (H, W) uint8, of the picture's size; white is painted anew."""
    feather: int | None = None
    """Pixels over which the painted part fades into the kept one; None for 16."""


@dataclass(frozen=True, eq=False)
class Start:
    """A picture to start from, checked.

    It does not hold the pixels but reads them again when they are wanted: many prompts are checked before the first
    picture is made, and together their pictures may be larger than the memory.
    """

    source: Source
    width: int
    """Pixels of the result, as `height`."""
    height: int
    strength: float
    """In [0, 1]: where the schedule begins."""
    fit: str | None
    feather: int
    """Pixels outside of the mask over which the result fades into the picture."""
    names: dict[str, str]
    """File names of image and mask, where they came from files."""
    image_sha256: str
    """Of the pixels in the result's size."""
    mask_sha256: str | None
    """The same of the mask; None without one."""

    def read(self) -> Given:
        """The picture and its mask in the result's size.

        Raises:
            MissingFileError: there is no such file any more.
            RequestError: a file has changed since it was checked, or cannot be read any more.
        """
        pixels, repaint = _fitted(*_given(self.source), (self.width, self.height), self.fit)
        if (_sha256(pixels), _mask_sha256(repaint)) != (self.image_sha256, self.mask_sha256):
            files = ", ".join(self.names.values()) or "an array"
            raise RequestError(f"the picture to start from or its mask ({files}) has changed since it was checked")
        return pixels, repaint

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; pixels are identified by SHA-256."""
        mask = {"mask_sha256": self.mask_sha256, "feather": self.feather} if self.mask_sha256 is not None else {}
        return {**self.names, "strength": self.strength, "fit": self.fit, "image_sha256": self.image_sha256, **mask}


def prepare(source: Source, sizes: SizeSpec, width: int | None, height: int | None) -> Start:
    """Read and fit the picture and its mask; the size of the result is that of the pixels.

    Raises:
        MissingFileError: there is no such file.
        RequestError: a file is not a picture, the mask is of another size or has no white, or picture and size do not
            fit together.
    """
    pixels, white = _given(source)
    width, height = target_size(sizes, (pixels.shape[1], pixels.shape[0]), width, height, source.fit)
    fitted, repaint = _fitted(pixels, white, (width, height), source.fit)
    if repaint is not None and not repaint.any():
        raise RequestError(f"the mask {_name(source.mask)} has no white in the result: nothing would be painted")
    strength = source.strength if source.strength is not None else STRENGTH if repaint is None else 1.0
    feather = FEATHER if source.feather is None else source.feather
    files = {"image": source.image, "mask": source.mask}
    names = {key: file.name for key, file in files.items() if isinstance(file, Path)}
    return Start(
        source, width, height, float(strength), source.fit, feather, names, _sha256(fitted), _mask_sha256(repaint)
    )


def _given(source: Source) -> tuple[np.ndarray, np.ndarray | None]:
    """The picture as it is given, and where its mask is white."""
    pixels = read_rgb(source.image) if isinstance(source.image, Path) else _checked(source.image)
    return pixels, None if source.mask is None else _mask(source.mask, (pixels.shape[1], pixels.shape[0]))


def _fitted(
    pixels: np.ndarray, white: np.ndarray | None, wanted: tuple[int, int], fit: str | None
) -> tuple[np.ndarray, np.ndarray | None]:
    placed = geometry((pixels.shape[1], pixels.shape[0]), wanted, fit)
    return placed.picture(pixels), None if white is None else placed.mask(white)


def _mask(mask: Path | np.ndarray, given: tuple[int, int]) -> np.ndarray:
    if isinstance(mask, Path):
        white = read_mask(mask)
    elif mask.ndim == 2 and mask.dtype in (np.bool_, np.uint8):
        white = mask if mask.dtype == np.bool_ else to_mask(mask)
    else:
        raise RequestError(f"the mask is {mask.dtype}{list(mask.shape)}, wanted (H, W) bool or uint8")
    if (white.shape[1], white.shape[0]) != given:
        raise RequestError(
            f"the mask {_name(mask)} is {white.shape[1]}x{white.shape[0]} and the picture {given[0]}x{given[1]}, "
            "wanted the same size"
        )
    return white


def _checked(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise RequestError(f"the picture to start from is {pixels.dtype}{list(pixels.shape)}, wanted uint8 (H, W, 3)")
    return pixels


def _name(value: Path | np.ndarray | None) -> str:
    return str(value) if isinstance(value, Path) else "array"


def _sha256(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _mask_sha256(repaint: np.ndarray | None) -> str | None:
    return None if repaint is None else _sha256(repaint)
