"""Image-to-image: what is asked for, and the checked pixels that a picture starts from."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.fit import FITS, geometry, target_size
from runtime.inpaint import FEATHER, MAX_FEATHER
from runtime.manifest import SizeSpec
from runtime.source_image import read_mask, read_rgb, to_mask

STRENGTH = 0.6
"""How far a picture is taken back to noise when nothing is said; with a mask it is 1, all the way."""


@dataclass(frozen=True, eq=False)
class Source:
    """A picture to start from, as it is asked for."""

    image: Path | np.ndarray
    """A file, or (H, W, 3) uint8."""
    strength: float | None = None
    """0 gives the picture back, 1 keeps almost nothing of it; None for 0.6, or 1 with a mask."""
    fit: str | None = None
    """One of `runtime.fit.FITS`; None where the aspect ratio must be the result's."""
    mask: Path | np.ndarray | None = None
    """A file, (H, W) bool, or (H, W) uint8, of the picture's size; white is painted anew."""
    feather: int | None = None
    """Pixels over which the painted part fades into the kept one; None for 16."""


@dataclass(frozen=True, eq=False)
class Start:
    """A picture to start from, checked and in the result's size."""

    pixels: np.ndarray
    """(H, W, 3) uint8."""
    strength: float
    """In [0, 1]: where the schedule begins."""
    fit: str | None
    repaint: np.ndarray | None
    """(H, W) bool, True where the picture is painted anew; None for everywhere."""
    feather: int
    """Pixels outside of `repaint` over which the result fades into the picture."""
    names: dict[str, str]
    """File names of image and mask, where they came from files."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the pixels are told by their hash."""
        mask = {"mask_sha256": _sha256(self.repaint), "feather": self.feather} if self.repaint is not None else {}
        return {**self.names, "strength": self.strength, "fit": self.fit, "image_sha256": _sha256(self.pixels), **mask}


def make_source(
    image: str | Path | np.ndarray | None,
    strength: float | None = None,
    fit: str | None = None,
    mask: str | Path | np.ndarray | None = None,
    feather: int | None = None,
) -> Source | None:
    """The source that options ask for; None without an image.

    Strength 1 without an image is text-to-image, and is allowed.

    Raises:
        ValueError: an option needs an image or a mask that is not there, or is out of range.
    """
    if strength is not None and not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}, wanted 0 to 1")
    if fit is not None and fit not in FITS:
        raise ValueError(f"fit is {fit!r}, wanted one of {', '.join(FITS)}")
    if feather is not None and not 0 <= feather <= MAX_FEATHER:
        raise ValueError(f"feather is {feather}, wanted 0 to {MAX_FEATHER} pixels")
    if image is None:
        for name, value in (
            ("strength below 1", strength not in (None, 1)),
            ("fit", fit),
            ("a mask", mask is not None),
        ):
            if value:
                raise ValueError(f"{name} needs an image to start from, and none is given")
    if feather is not None and mask is None:
        raise ValueError(f"feather {feather} needs a mask, and none is given")
    if image is None:
        return None
    return Source(_path(image), strength, fit, None if mask is None else _path(mask), feather)


def prepare(source: Source, sizes: SizeSpec, width: int | None, height: int | None) -> Start:
    """Read and fit the picture and its mask; the size of the result is that of the pixels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is not a picture, the mask is of another size or has no white, or picture and size do not
            fit together.
    """
    pixels = read_rgb(source.image) if isinstance(source.image, Path) else _checked(source.image)
    given = pixels.shape[1], pixels.shape[0]
    wanted = target_size(sizes, given, width, height, source.fit)
    placed = geometry(given, wanted, source.fit)
    repaint = None
    if source.mask is not None:
        repaint = placed.mask(_mask(source.mask, given))
        if not repaint.any():
            raise ValueError(f"the mask {_name(source.mask)} has no white in the result: nothing would be painted")
    strength = source.strength if source.strength is not None else STRENGTH if repaint is None else 1.0
    feather = FEATHER if source.feather is None else source.feather
    files = {"image": source.image, "mask": source.mask}
    names = {key: file.name for key, file in files.items() if isinstance(file, Path)}
    return Start(placed.picture(pixels), float(strength), source.fit, repaint, feather, names)


def _mask(mask: Path | np.ndarray, given: tuple[int, int]) -> np.ndarray:
    if isinstance(mask, Path):
        white = read_mask(mask)
    elif mask.ndim == 2 and mask.dtype in (np.bool_, np.uint8):
        white = mask if mask.dtype == np.bool_ else to_mask(mask)
    else:
        raise ValueError(f"the mask is {mask.dtype}{list(mask.shape)}, wanted (H, W) bool or uint8")
    if (white.shape[1], white.shape[0]) != given:
        raise ValueError(
            f"the mask {_name(mask)} is {white.shape[1]}x{white.shape[0]} and the picture {given[0]}x{given[1]}, "
            "wanted the same size"
        )
    return white


def _checked(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(f"the picture to start from is {pixels.dtype}{list(pixels.shape)}, wanted uint8 (H, W, 3)")
    return pixels


def _path(value: str | Path | np.ndarray) -> Path | np.ndarray:
    return value if isinstance(value, np.ndarray) else Path(value)


def _name(value: Path | np.ndarray) -> str:
    return str(value) if isinstance(value, Path) else "array"


def _sha256(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
