"""Figures that say how far two arrays or two pictures are apart. Knows no model and no bundle.

*PSNR* is ``10 log10(255^2 / MSE)`` over all bytes of a picture. *SSIM* is the mean structural similarity of Wang,
Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural similarity" (IEEE
Transactions on Image Processing 13, 2004), with the constants given there, a uniform window of 7x7 pixels and the
sample covariance, channel by channel: the defaults of scikit-image.

*Grid.* An image token is a square of 16x16 pixels, and the VAE's latent pixel one of 8x8. Errors that tokens make
independently of each other show as a grid: steps in brightness at the borders of the squares. `grid_ratio` looks
for them in one picture, on each axis:

1. The brightness (mean of the channels) is differentiated along the axis, and the magnitudes are averaged across it.
   Edges of things fall anywhere, edges of tokens at every 16th position: a grid makes this profile periodic.
2. The profile is cut to a whole number of periods, so that the period is exactly one bin of its Fourier transform.
   Its mean is taken off and a Hann window put on, which keeps what is not periodic out of other bins.
3. The power in the period's bin is divided by the median power of the bins around it, at most `_REACH` away; its two
   neighbours, which the window fills, are left out, and so is any other whole multiple of the lowest grid frequency.

The result is the larger one of the two axes. Without a grid it is chance, 2 in the median; of 8000 pictures of noise
on smooth shades, 1 % were above 11 and none above 23. A picture may have a grid of its own, tiles for example, so a
ratio means something only next to the reference's: a picture is flagged when its ratio is more than `FLAG_FACTOR` times
as large, a reference below `FLAG_FLOOR` being counted as that.
"""

import math
from dataclasses import dataclass

import numpy as np

PERIODS = (16, 8)
"""Pixels of an image token and of a latent pixel."""
MIN_PIXELS = 80
"""Shortest side of a picture that the grid check takes: five periods."""
FLAG_FACTOR, FLAG_FLOOR = 4.0, 8.0
_REACH = 12
_PEAK = 255.0
_WINDOW = 7
_C1, _C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2


@dataclass(frozen=True)
class VectorError:
    """How far an output is from the wanted one, as a vector of real numbers."""

    relative: float
    """Length of the difference over length of the wanted one."""
    cosine: float
    """Of the angle between the two."""


@dataclass(frozen=True)
class PictureError:
    """How far a picture is from the wanted one."""

    max_difference: int
    """Largest difference of a byte."""
    psnr: float
    """Decibels; infinite for equal pictures."""
    ssim: float
    """1 for equal pictures."""


@dataclass(frozen=True)
class GridCheck:
    """A grid in a picture, next to the reference's picture."""

    period: int
    """Pixels."""
    ratio: float
    reference: float

    @property
    def flagged(self) -> bool:
        """Whether the picture has a grid that the reference does not have."""
        return self.ratio > FLAG_FACTOR * max(self.reference, FLAG_FLOOR)


def vector_error(got: np.ndarray, wanted: np.ndarray) -> VectorError:
    """Compare two arrays of one shape in float64; two zero vectors are equal."""
    _check_shapes(got, wanted)
    got, wanted = got.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    difference, lengths = np.linalg.norm(got - wanted), (np.linalg.norm(got), np.linalg.norm(wanted))
    if difference == 0:
        return VectorError(0.0, 1.0)
    relative = difference / lengths[1] if lengths[1] else math.inf
    cosine = np.dot(got / lengths[0], wanted / lengths[1]) if all(lengths) else 0.0
    return VectorError(float(relative), float(np.clip(cosine, -1, 1)))


def picture_error(got: np.ndarray, wanted: np.ndarray) -> PictureError:
    """Compare two pictures (H, W, 3) uint8."""
    _check_shapes(got, wanted)
    difference = int(np.abs(got.astype(int) - wanted).max())
    return PictureError(difference, psnr(got, wanted), ssim(got, wanted))


def psnr(got: np.ndarray, wanted: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures in decibels."""
    _check_shapes(got, wanted)
    mean_square = np.mean(np.square(got.astype(np.float64) - wanted))
    return 10 * math.log10(_PEAK**2 / mean_square) if mean_square else math.inf


def ssim(got: np.ndarray, wanted: np.ndarray) -> float:
    """Mean structural similarity of two uint8 pictures (H, W, channels), both sides at least 7 pixels."""
    _check_shapes(got, wanted)
    if min(got.shape[:2]) < _WINDOW:
        raise ValueError(f"the pictures have {got.shape[1]}x{got.shape[0]} pixels, wanted at least 7x7 for SSIM")
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    mean_a, mean_b = _box(a), _box(b)
    sample = _WINDOW**2 / (_WINDOW**2 - 1)
    variance_a = sample * (_box(a * a) - mean_a * mean_a)
    variance_b = sample * (_box(b * b) - mean_b * mean_b)
    covariance = sample * (_box(a * b) - mean_a * mean_b)
    brightness = (2 * mean_a * mean_b + _C1) / (mean_a * mean_a + mean_b * mean_b + _C1)
    structure = (2 * covariance + _C2) / (variance_a + variance_b + _C2)
    return float(np.mean(brightness * structure))


def _box(x: np.ndarray) -> np.ndarray:
    """Means over all whole windows of the first two axes."""
    for axis in (0, 1):
        sums = np.insert(np.cumsum(x, axis), 0, 0.0, axis)
        ends, starts = np.arange(_WINDOW, sums.shape[axis]), np.arange(sums.shape[axis] - _WINDOW)
        x = (sums.take(ends, axis) - sums.take(starts, axis)) / _WINDOW
    return x


def grid_checks(got: np.ndarray, wanted: np.ndarray) -> tuple[GridCheck, ...]:
    """A check for each of `PERIODS` of a picture (H, W, 3) against the wanted one."""
    return tuple(GridCheck(period, grid_ratio(got, period), grid_ratio(wanted, period)) for period in PERIODS)


def check_size(width: int, height: int) -> None:
    """Raise ValueError if a picture is too small for the grid check."""
    if min(width, height) < MIN_PIXELS:
        raise ValueError(f"the picture has {width}x{height} pixels, wanted at least {MIN_PIXELS} on both sides")


def grid_ratio(picture: np.ndarray, period: int) -> float:
    """Strength of a grid of `period` pixels in a picture (H, W, 3); see the module's docstring."""
    check_size(*picture.shape[1::-1])
    brightness = picture.astype(np.float64).mean(axis=2)
    return max(
        _peak(np.abs(np.diff(brightness, axis=axis)).mean(axis=1 - axis), period) for axis in range(brightness.ndim)
    )


def _peak(profile: np.ndarray, period: int) -> float:
    """Power of a profile at `period` over the median power at the frequencies around it."""
    count = len(profile) // max(PERIODS) * max(PERIODS)
    profile = profile[:count] - profile[:count].mean()
    power = np.square(np.abs(np.fft.rfft(profile * np.hanning(count + 1)[:-1])))
    lowest, peak = count // max(PERIODS), count // period
    around = [
        b
        for b in range(max(peak - _REACH, 2), min(peak + _REACH, len(power) - 2) + 1)
        if abs(b - peak) > 1 and all(abs(b - m) > 1 for m in range(lowest, len(power), lowest))
    ]
    # Far below what a single grey level gives: only a blank picture's ratio changes, from 0 / 0 to 1.
    floor = 1e-7
    return float((power[peak] + floor) / (np.median(power[around]) + floor))


def _check_shapes(got: np.ndarray, wanted: np.ndarray) -> None:
    if got.shape != wanted.shape:
        raise ValueError(f"the shapes {got.shape} and {wanted.shape} differ")
