"""Start noise against PyTorch's."""

import numpy as np
import pytest
from support.golden import golden

from runtime.sampling.noise import randn

GOLDEN = golden("peers")


@pytest.mark.parametrize("case", GOLDEN["noise"], ids=lambda case: f"seed{case['seed']}")
def test_noise_is_torchs(case):
    got = randn(tuple(case["shape"]), case["seed"])
    assert got.shape == tuple(case["shape"]) and got.dtype == np.float32
    # The last bits of log, cos and sin differ between libraries; 4.8e-7 is the largest difference seen.
    assert np.abs(got.ravel()[-64:] - np.float32(case["last"])).max() <= 1e-6


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range(seed):
    with pytest.raises(ValueError, match=f"seed is {seed}, wanted an integer from 0 to 2\\*\\*64 - 1"):
        randn((1, 1, 128), seed)


def test_noise_of_an_odd_count():
    with pytest.raises(ValueError, match="has 15 values, wanted a multiple of 16"):
        randn((3, 5), 0)
