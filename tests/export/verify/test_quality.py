"""The figures: PSNR, SSIM, errors of vectors, and the check for a grid."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from export.verify.quality import (
    GridCheck,
    check_size,
    grid_checks,
    grid_ratio,
    picture_error,
    psnr,
    ssim,
    vector_error,
)

PICTURES = arrays(np.uint8, st.tuples(st.integers(7, 20), st.integers(7, 20), st.just(3)))


@given(PICTURES)
def test_equal_pictures(picture):
    assert psnr(picture, picture) == math.inf and ssim(picture, picture) == 1.0
    assert picture_error(picture, picture).max_difference == 0


@given(PICTURES, st.randoms(use_true_random=False))
def test_psnr_and_ssim_are_symmetric(picture, random):
    other = np.array([random.randrange(256) for _ in range(picture.size)], np.uint8).reshape(picture.shape)
    assert psnr(picture, other) == psnr(other, picture)
    assert ssim(picture, other) == pytest.approx(ssim(other, picture), abs=1e-12)
    assert -1 <= ssim(picture, other) <= 1


@given(st.integers(1, 255), st.integers(0, 254))
def test_psnr_of_an_offset(offset, value):
    """A difference of d everywhere: 20 log10(255 / d)."""
    offset = min(offset, 255 - value)
    picture = np.full((9, 8, 3), value, np.uint8)
    assert psnr(picture + np.uint8(offset), picture) == pytest.approx(20 * math.log10(255 / offset))


@given(PICTURES, st.randoms(use_true_random=False))
def test_ssim_is_the_mean_over_windows(picture, random):
    """The paper's formula, window by window, with numpy's own covariance."""
    noise = np.array([random.randrange(-40, 41) for _ in range(picture.size)]).reshape(picture.shape)
    other = np.clip(picture + noise, 0, 255).astype(np.uint8)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for row in range(picture.shape[0] - 6):
        for column in range(picture.shape[1] - 6):
            for channel in range(3):
                x, y = (p[row : row + 7, column : column + 7, channel].astype(float).ravel() for p in (picture, other))
                (vx, cov), (_, vy) = np.cov(x, y)
                mx, my = x.mean(), y.mean()
                values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert ssim(picture, other) == pytest.approx(np.mean(values), abs=1e-9)


@given(arrays(np.float32, 16, elements=st.floats(-8, 8, width=32)), st.floats(0.125, 8))
def test_vector_error_of_a_multiple(vector, factor):
    vector[0] = 1.0
    error = vector_error(vector * factor, vector)
    assert error.relative == pytest.approx(abs(factor - 1), abs=1e-5) and error.cosine == pytest.approx(1, abs=1e-9)
    assert vector_error(-vector, vector).cosine == pytest.approx(-1)


def test_vector_error_of_zeros():
    zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
    assert (vector_error(zero, zero).relative, vector_error(zero, zero).cosine) == (0, 1)
    assert (vector_error(one, zero).relative, vector_error(one, zero).cosine) == (math.inf, 0)
    assert (vector_error(zero, one).relative, vector_error(zero, one).cosine) == (1, 0)


@pytest.mark.parametrize("function", [psnr, ssim, vector_error, picture_error])
def test_shapes_that_differ(function):
    with pytest.raises(ValueError, match=r"the shapes \(8, 9, 3\) and \(9, 8, 3\) differ"):
        function(np.zeros((8, 9, 3), np.uint8), np.zeros((9, 8, 3), np.uint8))


def scene(seed, height, width):
    """Soft shades and noise of a few grey levels: neither edges nor a grid."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width] / 256
    shades = 128 + 50 * np.sin(random.uniform(2, 6) * x + y) + 30 * np.cos(random.uniform(2, 6) * y - x)
    return np.clip(shades[..., None] + random.randn(height, width, 3) * 3, 0, 255).astype(np.uint8)


def with_grid(picture, period, depth, shift=0, axes=(0, 1)):
    """Every `period`-th line darker by `depth`."""
    lined = picture.astype(int)
    for axis in axes:
        np.moveaxis(lined, axis, 0)[shift::period] -= depth
    return np.clip(lined, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(256, 256), (272, 320), (512, 256)], ids=str)
def test_grid_check_is_silent_without_a_grid(size):
    """Chance decides about single pictures, so these are always the same ones; one in a hundred thousand would fail."""
    scenes = [scene(seed, *size) for seed in range(60)]
    assert not any(c.flagged for one, other in pairwise(scenes) for c in grid_checks(one, other))


@given(
    st.integers(0, 10**6),
    st.sampled_from([(256, 256), (272, 320), (512, 256)]),
    st.integers(0, 15),
    st.sampled_from([(0,), (1,), (0, 1)]),
)
def test_grid_check_fires_on_a_grid(seed, size, shift, axes):
    """Lines four grey levels deep, about as deep as the noise, on either axis, wherever they begin."""
    clean = scene(seed, *size)
    check = grid_checks(with_grid(clean, 16, 4, shift, axes), clean)[0]
    assert (check.period, check.flagged) == (16, True)


def test_grid_of_latent_pixels():
    clean = scene(3, 256, 256)
    sixteen, eight = grid_checks(with_grid(clean, 8, 4), clean)
    assert eight.flagged and not sixteen.flagged


def test_steps_at_the_borders_of_tokens():
    """Each token a little brighter or darker than it should be."""
    clean = scene(4, 256, 256)
    offsets = np.kron(np.random.RandomState(0).randn(16, 16) * 4, np.ones((16, 16)))[..., None]
    assert grid_checks(np.clip(clean + offsets, 0, 255).astype(np.uint8), clean)[0].flagged


def test_grid_that_the_reference_has_too():
    tiles = with_grid(scene(5, 256, 256), 16, 20)
    assert not any(check.flagged for check in grid_checks(with_grid(scene(6, 256, 256), 16, 20), tiles))


def test_flag_has_a_floor():
    """Four times nothing is still nothing."""
    assert not GridCheck(16, 31.9, 0.01).flagged and GridCheck(16, 32.1, 0.01).flagged
    assert not GridCheck(16, 399.0, 100.0).flagged and GridCheck(16, 401.0, 100.0).flagged


@pytest.mark.parametrize("value", [0, 128, 255])
def test_blank_picture_has_no_grid(value):
    assert grid_ratio(np.full((96, 80, 3), value, np.uint8), 16) == pytest.approx(1)


def test_smallest_picture():
    check_size(80, 80)
    assert grid_ratio(scene(0, 80, 80), 16) > 0 < grid_ratio(scene(0, 80, 80), 8)
    with pytest.raises(ValueError, match="the picture has 96x64 pixels, wanted at least 80 on both sides"):
        check_size(96, 64)
    with pytest.raises(ValueError, match="wanted at least 7x7 for SSIM"):
        ssim(np.zeros((6, 9, 3), np.uint8), np.zeros((6, 9, 3), np.uint8))
