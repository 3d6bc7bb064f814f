"""The Euler loop with made-up velocities."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import NonFiniteError
from runtime.sampling.denoise import denoise
from runtime.sampling.schedule import PRESETS, Sampling, schedule

STEPS = schedule(PRESETS["V4_TURBO_12"], 256, 256)


def constant(value):
    return lambda latents, t: np.full_like(latents, value)


@given(st.lists(st.sampled_from([1.0, 3.0, 7.0]), min_size=1, max_size=30), st.floats(-2, 2, width=32))
def test_constant_velocity_arrives(guidance, velocity):
    """With one velocity v for both passes the result is z + v * (1 - t_first), whatever the steps and the guidance."""
    steps = schedule(Sampling(tuple(guidance), 0.0, 1.5), 256, 256)
    start = np.linspace(-1, 1, 128, dtype=np.float32).reshape(1, 1, 128)
    last = list(denoise(constant(velocity), constant(velocity), start, steps))[-1]
    wanted = start + np.float32(velocity) * steps[0].sigma
    # Each of up to 30 steps rounds a velocity of up to 7 * 2 + 6 * 2 and a latent of up to 3 to float32.
    np.testing.assert_allclose(last, wanted, atol=30 * 26 * 2.0**-24)


def test_guidance_extrapolates():
    step = schedule(Sampling((3.0,), 0.0, 1.5), 256, 256)
    (last,) = denoise(constant(2.0), constant(1.0), np.zeros((1, 1, 4), np.float32), step)
    assert np.allclose(last, (3 * 2.0 - 2 * 1.0) * step[0].dt)


def test_guidance_one_skips_the_unconditional_pass_exactly():
    calls = []

    def unconditional(latents, t):
        calls.append(float(t))
        return np.zeros_like(latents)

    steps = schedule(Sampling((1.0, 2.0, 1.0), 0.0, 1.5), 256, 256)
    list(denoise(constant(1.0), unconditional, np.zeros((1, 1, 4), np.float32), steps))
    assert calls == [float(steps[1].t)]


def test_latents_of_every_step_are_yielded_and_not_reused():
    start = np.zeros((1, 1, 4), np.float32)
    seen = list(denoise(constant(1.0), constant(1.0), start, STEPS))
    assert len(seen) == 12 and not start.any()
    assert all((a < b).all() for a, b in itertools.pairwise(seen))


@pytest.mark.parametrize(("bad", "which"), [((np.nan, 0.0), "conditional"), ((0.0, np.inf), "unconditional")])
def test_nan_names_step_and_pass(bad, which):
    def after_four(value):
        return lambda latents, t: np.full_like(latents, value if t >= STEPS[4].t else 0.0)

    loop = denoise(after_four(bad[0]), after_four(bad[1]), np.zeros((1, 1, 4), np.float32), STEPS)
    with pytest.raises(NonFiniteError, match=rf"the {which} velocity has 4 NaN or infinite values at step 5 of 12"):
        list(loop)


def test_no_unconditional_velocity():
    with pytest.raises(ValueError, match="guidance other than 1 needs an unconditional velocity"):
        list(denoise(constant(1.0), None, np.zeros((1, 1, 4), np.float32), STEPS))
