"""From histograms to ranges, against PyTorch's float8 and against the values themselves."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from calibration.static.algorithms import mse_range, percentile_range, round_e4m3, tensor_range
from calibration.static.histogram import empty_histogram, histogram_of


def torch_e4m3(x):
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()


# e4m3's codes 0 to 126 are its numbers from 0 to 448; 127 is NaN.
E4M3 = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


@given(st.lists(st.floats(-1000, 1000, width=32) | st.floats(-0.015625, 0.015625, width=32), min_size=1))
def test_rounding_is_pytorchs(values):
    x = torch.tensor(values)
    assert np.array_equal(round_e4m3(x.double().numpy()), torch_e4m3(x).numpy())


def test_rounding_is_pytorchs_at_and_beside_every_number_and_tie():
    ties = (E4M3[1:] + E4M3[:-1]) / 2
    x = torch.cat((E4M3, ties))
    x = torch.cat((x, torch.nextafter(x, torch.tensor(0.0)), torch.nextafter(x, torch.tensor(1e9))))
    assert np.array_equal(round_e4m3(x.double().numpy()), torch_e4m3(x).numpy())
    assert round_e4m3(np.array([449.0, 1e30, -1e30])).tolist() == [448, 448, -448]


@given(st.lists(st.floats(2.0**-20, 1000, width=32), min_size=1, max_size=200), st.floats(1, 100))
def test_percentile_holds_its_part_of_the_values_and_hardly_more(values, percentile):
    found = percentile_range(histogram_of(torch.tensor(values)), percentile)
    inside = np.mean(np.array(values) <= found)
    # The share may fall short of the percentile by a rounding of float64.
    assert inside >= percentile / 100 - 1e-12
    ranked = np.quantile(values, percentile / 100, method="inverted_cdf")
    # A bin is a sixty-fourth of its octave wide.
    assert found <= ranked * (1 + 1 / 64)
    assert found <= max(values)


def test_percentile_leaves_the_outlier_out_and_100_does_not():
    histogram = histogram_of(torch.cat((torch.full((9999,), 0.5), torch.tensor([80.0]))))
    assert percentile_range(histogram, 99.99) == 0.5 * (1 + 1 / 64)
    assert percentile_range(histogram, 100) == 80.0


def squared_error(x, largest):
    """Sum over the values themselves, with PyTorch's casts and a float32 scale as in deployment."""
    scale = torch.tensor(largest / 448, dtype=torch.float32)
    return float(((torch_e4m3(x / scale) * scale - x).double() ** 2).sum())


def samples():
    random = torch.Generator().manual_seed(7)
    normal = torch.randn(200_000, generator=random)
    uniform = torch.rand(200_000, generator=random)
    yield "normal", normal
    yield "normal, another size", 0.0037 * normal
    yield "uniform", 3 * uniform
    yield "heavy tails", normal / uniform.clamp(min=1e-3)
    yield "mostly below the smallest normal number", torch.cat((1e-5 * normal, torch.tensor([1.0])))
    # Most values halfway between two e4m3 numbers of the full range, few at its end.
    for tie in (120, 232, 248, 272, 304):
        yield f"a peak at {tie} of 448", torch.cat((tie / 448 + 0.004 * normal, torch.ones(3)))
    yield "SwiGLU", torch.nn.functional.silu(normal) * normal.roll(1)


SAMPLES = dict(samples())


@pytest.mark.parametrize("name", SAMPLES)
def test_mse_is_the_best_candidate_of_the_values_themselves(name):
    x = SAMPLES[name]
    amax = float(x.abs().max())
    candidates = [amax * 2 ** (-k / 8) for k in range(33)]
    errors = [squared_error(x, candidate) for candidate in candidates]
    found = mse_range(histogram_of(x))
    assert found in candidates
    # An eighth of a rounding step is the resolution of a bin: candidates closer than 2 % may be confused.
    assert squared_error(x, found) <= 1.02 * min(errors)


def test_mse_gives_up_few_large_values_for_many_small_ones():
    """Else the test above could pass without any search: mostly the largest magnitude is the best range."""
    x = SAMPLES["a peak at 232 of 448"]
    found = mse_range(histogram_of(x))
    assert found < 0.95 and squared_error(x, found) < 0.5 * squared_error(x, 1.0)


@given(st.lists(st.floats(2.0**-20, 1e6, width=32), min_size=1, max_size=50))
def test_ranges_are_within_the_largest_magnitude(values):
    found = tensor_range(histogram_of(torch.tensor(values)), 99.99)
    assert found.amax == max(values) and found.values == len(values)
    assert 0 < found.percentile <= found.amax and found.amax / 16 <= found.mse <= found.amax


def test_zeros_have_the_range_zero():
    found = tensor_range(empty_histogram() + histogram_of(torch.zeros(5)), 99.99)
    assert (found.amax, found.percentile, found.mse, found.values) == (0, 0, 0, 5)
