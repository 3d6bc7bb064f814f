"""Histograms count every value in the right bin, whatever its type, layout or place in a sequence."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from calibration.static.histogram import BINS, HIGHEST, LOWEST, edges, empty_histogram, histogram_of

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
NEAR_EDGES = st.builds(
    lambda index, side: float(np.nextafter(np.float32(edges()[index]), np.float32(side))),
    st.integers(0, BINS),
    st.sampled_from([-np.inf, np.inf]),
)
VALUES = st.lists(FLOATS | NEAR_EDGES | st.sampled_from(edges().tolist()), min_size=1, max_size=50)


def tensor(values):
    return torch.tensor(values, dtype=torch.float32)


def test_edges():
    found = edges()
    assert found.shape == (BINS + 1,) and (np.diff(found) > 0).all()
    assert (found[0], found[1], found[-1]) == (0, 2.0**LOWEST, 2.0**HIGHEST)
    # No bin but the lowest is wider than a sixty-fourth of what it holds.
    assert (np.diff(found[1:]) / found[1:-1]).max() == 1 / 64


@given(VALUES)
def test_every_value_is_in_its_bin(values):
    histogram = histogram_of(tensor(values))
    places = np.searchsorted(edges(), np.abs(np.array(values)), side="right") - 1
    wanted = np.bincount(np.minimum(places, BINS - 1), minlength=BINS)
    assert np.array_equal(histogram.counts, wanted)
    assert histogram.amax == max(map(abs, values)) and histogram.values == len(values)


@given(VALUES, VALUES)
def test_merging_is_addition(first, second):
    both, merged = histogram_of(tensor(first + second)), histogram_of(tensor(first)) + histogram_of(tensor(second))
    assert np.array_equal(both.counts, merged.counts) and both.amax == merged.amax
    assert merged.counts.shape == (BINS,) and merged.counts.dtype == np.int64
    unchanged = merged + empty_histogram()
    assert np.array_equal(unchanged.counts, merged.counts) and unchanged.amax == merged.amax


def test_type_and_layout_do_not_matter():
    x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    wanted = histogram_of(x.float().flatten())
    for same in (x, x.transpose(1, 2), -x, x.float()[:, :, ::1].permute(2, 0, 1), x.double()):
        assert np.array_equal(histogram_of(same).counts, wanted.counts)
        assert histogram_of(same).amax == wanted.amax


@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_shows_in_the_largest_magnitude(bad):
    histogram = histogram_of(tensor([1.0, bad, -2.0]))
    for seen in (histogram, histogram + histogram_of(tensor([3.0])), histogram_of(tensor([3.0])) + histogram):
        assert not np.isfinite(seen.amax)
