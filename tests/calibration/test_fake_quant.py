"""Fake quantization gives what quantizing by hand gives."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from support.fake_quantized import fake_quantized

from calibration.fake_quant import quantize_dequantize
from calibration.points import POINTS, names_of, point_of

STAGE = "dit_cond"


@pytest.fixture(scope="module")
def module(checkpoint):
    return checkpoint.load(STAGE)


@pytest.fixture(scope="module")
def feeds(inputs):
    return inputs(STAGE)


@pytest.fixture(scope="module")
def ranges(module, feeds, by_hand):
    """Ranges that saturate a few values of each tensor."""
    seen, _ = by_hand(module, STAGE, **feeds)
    return {name: 0.8 * float(x.abs().max()) for name, x in seen.items()}


def by_codes(x, largest):
    """The nearest of all e4m3 numbers times the scale, found by looking at each; ties go to the even code."""
    scale = torch.tensor(largest / 448)
    numbers = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    distances = ((x / scale).abs().reshape(-1, 1) - numbers).abs()
    nearest = distances == distances.min(dim=1, keepdim=True).values
    even = nearest & (torch.arange(127) % 2 == 0)
    codes = torch.where(even.any(dim=1), even.int().argmax(dim=1), nearest.int().argmax(dim=1))
    return (numbers[codes].reshape(x.shape) * scale).copysign(x)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1), st.floats(0.125, 200))
def test_the_nearest_number_is_taken(values, largest):
    x = torch.tensor(values)
    assert torch.equal(quantize_dequantize(x, largest), by_codes(x, largest))


def test_numbers_on_the_grid_stay_and_large_ones_saturate():
    numbers = torch.tensor([0.0, 2.0**-9, 1.0, -1.125, 448.0])
    assert torch.equal(quantize_dequantize(numbers, 448.0), numbers)
    assert torch.equal(quantize_dequantize(torch.tensor([500.0, -1e9]), 448.0), torch.tensor([448.0, -448.0]))
    assert torch.equal(quantize_dequantize(numbers / 4, 112.0), numbers / 4)


@pytest.mark.parametrize("points", [*([p] for p in POINTS), None, [f"{STAGE}.layers.1.attention.k"]])
def test_equals_quantizing_by_hand(module, feeds, ranges, points, by_hand):
    def change(name, x):
        chosen = points is None or name in points or point_of(name) in points
        return quantize_dequantize(x, ranges[name]) if chosen else x

    _, wanted = by_hand(module, STAGE, **feeds, change=change)
    plain = module(**feeds)
    with fake_quantized(module, STAGE, ranges, points):
        quantized = module(**feeds)
    # The same operations in the same order.
    assert torch.equal(quantized, wanted)
    assert not torch.equal(quantized, plain), "nothing was quantized"
    assert torch.equal(module(**feeds), plain)


def test_no_points_change_nothing(module, feeds):
    plain = module(**feeds)
    with fake_quantized(module, STAGE, {}, []):
        assert torch.equal(module(**feeds), plain)


def test_refusals(module, ranges):
    name = names_of(STAGE, 3)[4]
    for spoilt in (0.0, -1.0, float("nan")):
        with (
            pytest.raises(ValueError, match=rf"{name} has the range {spoilt}, wanted a number above 0"),
            fake_quantized(module, STAGE, ranges | {name: spoilt}),
        ):
            pass
    missing = {key: value for key, value in ranges.items() if key != name}
    with pytest.raises(ValueError, match=f"{name} has the range None"), fake_quantized(module, STAGE, missing):
        pass
    with fake_quantized(module, STAGE, missing, ["attention.qkv"]):
        pass
    for unknown in ("attention.w9", "dit_uncond.layers.0.attention.qkv", "dit_cond.layers.3.attention.qkv"):
        with (
            pytest.raises(ValueError, match=f"point is '{unknown}', wanted"),
            fake_quantized(module, STAGE, ranges, [unknown]),
        ):
            pass
