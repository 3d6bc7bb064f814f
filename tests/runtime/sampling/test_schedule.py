"""Presets and time steps against diffusers' and the published ones."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.golden import golden

from runtime.sampling.schedule import PRESETS, Sampling, parse_guidance, round_to_bfloat16, sampling, schedule

GOLDEN = golden("peers")


@pytest.mark.parametrize("case", GOLDEN["schedules"], ids=lambda case: f"{case['preset']}-{case['size']}")
def test_schedule_is_diffusers(case):
    steps = schedule(PRESETS[case["preset"]], *case["size"])
    # Equal to the last bit here; two units in the last place of float32 are left for other C libraries' exp and log.
    np.testing.assert_allclose([s.t for s in steps], case["t"], rtol=0, atol=1.2e-7)
    sigmas = [*(s.sigma for s in steps), steps[-1].sigma_next]
    np.testing.assert_allclose(sigmas, case["sigma"], rtol=0, atol=1.2e-7)
    assert [float(round_to_bfloat16(s.t)) for s in steps] == case["t_bf16"]


def test_published_times():
    """V4_DEFAULT_20 and V4_TURBO_12 at 1024 x 1024, as published with the original code (seven digits)."""
    default = [
        0.0001234,
        0.0273411,
        0.0504090,
        0.0753755,
        0.1028470,
        0.1331368,
        0.1664709,
        0.2030309,
        0.2429627,
        0.2863752,
        0.3333333,
        0.3838497,
        0.4378752,
        0.4952911,
        0.5559037,
        0.6194490,
        0.6856133,
        0.7541021,
        0.8248513,
        0.8989259,
    ]
    turbo = [
        0.0001234,
        0.0262526,
        0.0528432,
        0.0852156,
        0.1248896,
        0.1734463,
        0.2326965,
        0.3047251,
        0.3918900,
        0.4968025,
        0.6224219,
        0.7733093,
    ]
    for name, times in (("V4_DEFAULT_20", default), ("V4_TURBO_12", turbo)):
        got = [s.t for s in schedule(PRESETS[name], 1024, 1024)]
        np.testing.assert_allclose(got, times, rtol=0, atol=1.5e-7)  # half a digit, and float32


def test_presets():
    """First step first; the last steps are the ones with less guidance."""
    assert PRESETS["V4_QUALITY_48"] == Sampling((7.0,) * 45 + (3.0,) * 3, 0.0, 1.5, "V4_QUALITY_48")
    assert PRESETS["V4_DEFAULT_20"] == Sampling((7.0,) * 18 + (3.0,) * 2, 0.0, 1.75, "V4_DEFAULT_20")
    assert PRESETS["V4_TURBO_12"] == Sampling((7.0,) * 11 + (3.0,), 0.5, 1.75, "V4_TURBO_12")
    assert PRESETS["V4_FAST_20"] == Sampling((1.0,) * 20, 0.0, 1.75, "V4_FAST_20")
    assert PRESETS["V4_INSTANT_8"] == Sampling((1.0,) * 8, 0.0, 1.75, "V4_INSTANT_8")


@given(st.integers(1, 60), st.floats(-2, 2), st.floats(0.3, 3), st.integers(16, 128), st.integers(16, 128))
def test_schedule_goes_from_noise_to_picture(count, mu, std, columns, rows):
    steps = schedule(Sampling((1.0,) * count, mu, std), 16 * columns, 16 * rows)
    assert len(steps) == count and steps[-1].sigma_next == 0
    assert all(a.sigma_next == b.sigma for a, b in itertools.pairwise(steps))
    assert all(step.dt >= 0 and 0 <= step.t < 1 for step in steps)
    assert steps[0].t == pytest.approx(1.23394576e-4, rel=1e-3)  # the clamp, within float32 of 1 - t


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither a preset nor a number of steps"),
        ({"preset": "V4_NONE"}, "preset is 'V4_NONE', wanted one of V4_QUALITY_48, V4_DEFAULT_20"),
        ({"preset": "V4_TURBO_12", "steps": 12}, "preset V4_TURBO_12 fixes the number of steps"),
        ({"steps": 0}, "the number of steps is 0, wanted 1 to 1000"),
        ({"steps": 1001}, "the number of steps is 1001, wanted 1 to 1000"),
        ({"steps": 4, "guidance": (7.0, 3.0)}, "has 2 entries, wanted one for each of 4 steps"),
        ({"preset": "V4_TURBO_12", "guidance": (7.0,) * 20}, "has 20 entries, wanted one for each of 12 steps"),
        ({"steps": 4, "guidance": float("nan")}, "guidance is nan, wanted a number of at most 10000"),
        ({"steps": 4, "std": 0.0}, "std is 0.0, wanted a number above 0"),
        ({"steps": 4, "mu": float("inf")}, "mu is inf, wanted a number of at most 10000"),
    ],
)
def test_sampling_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        sampling(**arguments)


def test_sampling_overrides():
    assert sampling(preset="V4_TURBO_12") is PRESETS["V4_TURBO_12"]
    assert sampling(preset="V4_TURBO_12", guidance=2.0) == Sampling((2.0,) * 12, 0.5, 1.75)
    assert sampling(steps=3) == Sampling((7.0,) * 3, 0.0, 1.5)
    assert sampling(steps=2, guidance=(4.0, 1.0), mu=0.5, std=1.0) == Sampling((4.0, 1.0), 0.5, 1.0)


def test_parse_guidance():
    assert parse_guidance("7x3,3x2") == (7.0, 7.0, 7.0, 3.0, 3.0)
    assert parse_guidance(" 7 , 2.5x1 ") == (7.0, 2.5)


@pytest.mark.parametrize("text", ["", "7x", "x3", "7x3;3", "seven", "7x3,,3", "7xx3", "--7", "7x99999"])
def test_parse_guidance_refuses(text):
    with pytest.raises(ValueError, match="wanted WEIGHT or WEIGHTxCOUNT"):
        parse_guidance(text)


@given(st.floats(0, 1, width=32))
def test_bfloat16_is_nearest(value):
    got = float(round_to_bfloat16(np.float32(value)))
    below, above = (
        np.uint32((int(np.float32(value).view(np.uint32)) >> 16) + i << 16).view(np.float32) for i in (0, 1)
    )
    assert abs(got - value) == min(abs(float(below) - value), abs(float(above) - value))
