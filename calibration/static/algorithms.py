"""From a histogram to a range: the magnitude that becomes the largest float8 number.

Float8 is e4m3 (finite up to 448): a value x is stored as ``e4m3(x / scale)`` with ``scale = range / 448``, and larger
magnitudes saturate.
"""

import numpy as np

from calibration.static.histogram import Histogram, edges
from calibration.static.ranges import TensorRange
from model.checkpoint.row_codes import E4M3_MAX

_MANTISSA_BITS, _MIN_EXPONENT = 3, -6
"""Of e4m3; below 2^-6 its numbers stay 2^-9 apart."""
_CANDIDATES = 2.0 ** (-np.arange(33) / 8)
"""Ranges that `mse_range` tries, as parts of the largest magnitude: eight to an octave, down to a sixteenth."""


def tensor_range(histogram: Histogram, percentile: float) -> TensorRange:
    """The ranges of all algorithms; 0 for a tensor of zeros."""
    return TensorRange(histogram.amax, percentile_range(histogram, percentile), mse_range(histogram), histogram.values)


def percentile_range(histogram: Histogram, percentile: float) -> float:
    """The upper edge of the bin with the `percentile` (0 < p <= 100) of the magnitudes, at most the largest one.

    So at least this part of the values is within the range, and 100 gives the largest magnitude.
    """
    cumulated = np.cumsum(histogram.counts)
    index = int(np.searchsorted(cumulated, percentile / 100 * cumulated[-1]))
    return min(float(edges()[index + 1]), histogram.amax)


def mse_range(histogram: Histogram) -> float:
    """The candidate range with the smallest squared error of rounding and saturation, the largest of equals.

    The error is that of real e4m3 numbers at the centre of each bin, weighted with the bin's count.
    """
    used = np.flatnonzero(histogram.counts)
    counts, lower, upper = histogram.counts[used], edges()[used], edges()[used + 1]
    # The bin of zero holds what float8 cannot tell from zero anyway.
    centres = np.where(used == 0, 0.0, np.minimum((lower + upper) / 2, histogram.amax))
    candidates = histogram.amax * _CANDIDATES
    scales = np.maximum(candidates, np.finfo(np.float32).tiny)[:, None] / E4M3_MAX
    errors = (counts * (round_e4m3(centres / scales) * scales - centres) ** 2).sum(axis=1)
    return float(candidates[np.argmin(errors)])


def round_e4m3(x: np.ndarray) -> np.ndarray:
    """The e4m3 numbers nearest to x, ties to the even mantissa; magnitudes above 448 become 448."""
    x = np.clip(x, -E4M3_MAX, E4M3_MAX)
    # frexp's mantissa is in [0.5, 1), so that its exponent is one above the IEEE one.
    exponents = np.maximum(np.frexp(x)[1] - 1, _MIN_EXPONENT)
    steps = np.ldexp(1.0, exponents - _MANTISSA_BITS)
    return np.rint(x / steps) * steps
