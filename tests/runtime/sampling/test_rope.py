"""Rotary tables against diffusers'."""

import numpy as np
import pytest
from support.golden import golden

from runtime.sampling.rope import image_positions, rope_tables, text_positions

GOLDEN = golden("peers")


@pytest.mark.parametrize("case", GOLDEN["ropes"], ids=lambda case: f"head{case['head_dim']}")
def test_rope_is_diffusers(case):
    positions = np.concatenate((text_positions(case["text"]), image_positions(*case["grid"])))
    assert positions.tolist() == case["positions"]
    cos, sin = rope_tables(positions, case["head_dim"], 5_000_000, tuple(case["sections"]))
    for got, wanted in ((cos, case["cos"]), (sin, case["sin"])):
        assert got.dtype == np.float32
        difference = np.abs(got - np.float32(wanted))
        # One frequency in 128 differs in its last bit: 2 ** -24 of an angle of at most 65539 radians.
        assert difference.max() <= 65539 * 2.0**-24
        assert np.median(difference) <= 6e-8
        assert (difference.max(axis=0) > 2e-7).sum() <= 2  # that one lane and its copy


def test_positions_of_text_and_image_never_meet():
    assert text_positions(2048).max() < image_positions(1, 1).min() == 65536
