"""How a given picture becomes one of a size that the model makes: which size, and how it is cut or filled."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from runtime.bundle.manifest import SizeSpec
from runtime.errors import RequestError

FITS = ("crop", "pad", "stretch")
"""What to do with a picture of another aspect ratio: cut off what is too much on two sides, widen it (the edge's
pixels are repeated), or distort it."""


@dataclass(frozen=True)
class Geometry:
    """Where the pixels of a picture go."""

    box: tuple[float, float, float, float]
    """Left, top, right and bottom of the part that is kept, in pixels of the given picture."""
    width: int
    height: int
    """Size that this part is scaled to, in pixels."""
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    """Pixels added at top and bottom, left and right, after scaling."""

    def picture(self, pixels: np.ndarray) -> np.ndarray:
        """A picture (h, w, 3) uint8 in its new size; added pixels repeat the edge."""
        return np.pad(self._scaled(pixels), (*self.padding, (0, 0)), mode="edge")

    def mask(self, white: np.ndarray) -> np.ndarray:
        """A mask (h, w) bool in its new size. Added pixels are white: there is nothing to keep."""
        scaled = self._scaled(white.astype(np.uint8) * 255) >= 128
        return np.pad(scaled, self.padding, constant_values=True)

    def _scaled(self, pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]
        if (self.width, self.height) == (width, height) and self.box == (0, 0, width, height):
            return pixels
        image = Image.fromarray(pixels)
        return np.asarray(image.resize((self.width, self.height), Image.Resampling.LANCZOS, box=self.box))


def target_size(
    sizes: SizeSpec, given: tuple[int, int], width: int | None, height: int | None, fit: str | None
) -> tuple[int, int]:
    """Width and height of the result for a picture of the size `given`.

    What is not asked for follows from the picture: its own size, or the other side at its aspect ratio. With `fit`
    this is moved to the nearest size that the model makes; without, it must be one.

    Raises:
        RequestError: the size cannot be made.
    """
    own_width, own_height = given
    if width is None and height is None:
        scale = 1.0 if fit is None else _scale_into(sizes, own_width, own_height)
    else:
        scale = width / own_width if width is not None else height / own_height  # type: ignore[operator]  # one is given
    rounded = _nearest if fit is not None else lambda sizes, value: round(value)
    width = rounded(sizes, own_width * scale) if width is None else width
    height = rounded(sizes, own_height * scale) if height is None else height
    try:
        sizes.check(width, height)
    except ValueError as error:
        raise RequestError(
            f"the picture to start from is {own_width}x{own_height}, so the result would be {width}x{height}: {error}; "
            "give --width and --height, or --fit"
        ) from error
    return width, height


def geometry(given: tuple[int, int], wanted: tuple[int, int], fit: str | None) -> Geometry:
    """How a picture of the size `given` (width, height) is brought to the size `wanted`.

    Raises:
        RequestError: the aspect ratios differ by more than rounding, and `fit` is None.
    """
    (own_width, own_height), (width, height) = given, wanted
    whole = (0.0, 0.0, float(own_width), float(own_height))
    same = round(own_width * height / own_height) == width or round(own_height * width / own_width) == height
    if same or fit == "stretch":
        return Geometry(whole, width, height)
    if fit == "crop":
        scale = max(width / own_width, height / own_height)
        left, top = (own_width - width / scale) / 2, (own_height - height / scale) / 2
        return Geometry((left, top, left + width / scale, top + height / scale), width, height)
    if fit == "pad":
        scale = min(width / own_width, height / own_height)
        inner = max(1, min(width, round(own_width * scale))), max(1, min(height, round(own_height * scale)))
        across, down = width - inner[0], height - inner[1]
        return Geometry(whole, *inner, ((down // 2, down - down // 2), (across // 2, across - across // 2)))
    raise RequestError(
        f"the picture to start from is {own_width}x{own_height} and the result {width}x{height}, which is another "
        "aspect ratio; choose --fit crop, pad or stretch, or another size"
    )


def _scale_into(sizes: SizeSpec, width: int, height: int) -> float:
    """The factor nearest to 1 that brings both sides into the model's range; the longer side decides."""
    return min(max(1.0, sizes.minimum / min(width, height)), sizes.maximum / max(width, height))


def _nearest(sizes: SizeSpec, value: float) -> int:
    steps = round(min(max(value, sizes.minimum), sizes.maximum) / sizes.multiple)
    return min(max(steps * sizes.multiple, sizes.minimum), sizes.maximum)
