"""Histograms of magnitudes that take the same memory however many values they hold.

There are 64 bins to an octave from 2^-24 to 2^24, equally wide within it, and one bin below them for zero and all
smaller magnitudes. A float32's exponent and the first six bits of its mantissa are the number of its bin, so no
logarithm is taken and a value never falls beside its bin. e4m3 has eight steps to an octave: eight bins to a step are
enough to see where rounding goes. Magnitudes from 2^24 on count in the last bin; the largest magnitude is kept exactly.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LOWEST, HIGHEST = -24, 24
"""Exponents of 2 between which magnitudes are told apart."""
_BITS = 6
BINS = 1 + ((HIGHEST - LOWEST) << _BITS)
_MANTISSA_BITS, _EXPONENT_BIAS = 23, 127
_SIGNLESS = 0x7FFFFFFF
_BELOW = ((_EXPONENT_BIAS + LOWEST) << _BITS) - 1
"""Leading bits of the largest float32 below 2^LOWEST."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """Magnitudes of a tensor; the sum of two is the histogram of both tensors' values."""

    amax: float
    """The largest magnitude; NaN or infinity if there was one."""
    counts: np.ndarray
    """(BINS,) int64, values in each bin; `edges` says which."""

    @property
    def values(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def __add__(self, other: "Histogram") -> "Histogram":
        return Histogram(float(np.maximum(self.amax, other.amax)), self.counts + other.counts)


def histogram_of(x: Tensor) -> Histogram:
    """The histogram of a tensor of any shape (not empty), type and device."""
    # Without the sign bit, float32 patterns are ordered as their magnitudes, infinity and then NaN at the end.
    patterns = x.detach().float().view(torch.int32).flatten() & _SIGNLESS
    bins = (patterns >> (_MANTISSA_BITS - _BITS)).sub_(_BELOW).clamp_(0, BINS - 1)
    return Histogram(patterns.max().view(torch.float32).item(), torch.bincount(bins, minlength=BINS).cpu().numpy())


def empty_histogram() -> Histogram:
    """The histogram of no values."""
    return Histogram(0.0, np.zeros(BINS, np.int64))


def edges() -> np.ndarray:
    """(BINS + 1,) float64: bin i holds magnitudes from edge i up to, not including, edge i + 1."""
    octaves = np.ldexp(1.0, np.arange(LOWEST, HIGHEST))[:, None]
    inside = 1 + np.arange(1 << _BITS) / (1 << _BITS)
    return np.concatenate(([0.0], (octaves * inside).ravel(), [2.0**HIGHEST]))
