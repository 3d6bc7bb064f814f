"""Our float8 recipe beside NVIDIA ModelOpt's default one, as scripts/bench/quantizers.py measures them."""

import pytest

from calibration.prompts import DEFAULT_PROMPTS, read_prompts
from calibration.reference import prompt_encoder
from export.demo_model import DEMO_CHECKPOINT
from export.velocity import rms
from model.checkpoint.directory import open_checkpoint
from scripts.bench.quantizers import compare


@pytest.fixture(scope="module")
def errors():
    """Name of a recipe -> root mean square of the velocity errors of both transformers at held-out inputs."""
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    prompts = read_prompts(DEFAULT_PROMPTS, prompt_encoder(checkpoint))
    rows = compare(checkpoint, prompts[:2], prompts[8:10], "V4_TURBO_12", levels=3)
    return {name: rms([e for stage in row.values() for e in stage]) for name, row in rows.items()}


def test_better_than_modelopt_by_a_quarter_or_more(errors):
    """Measured: less than half of ModelOpt's error, because the weights keep their row scales and the embedders, the
    time's layers and the final layer stay unquantized; int8 a third."""
    modelopt = errors["ModelOpt FP8_DEFAULT_CFG"]
    assert modelopt > 1e-2, "ModelOpt has quantized nothing"
    for row in ("fp8", "int8", *(f"fp8, static, {algorithm}" for algorithm in ("max", "percentile", "mse"))):
        assert errors[row] <= 0.75 * modelopt
    assert errors["int8"] <= 0.8 * errors["fp8"] and errors["fp8"] <= errors["fp8, static, max"]


def test_quantizing_every_linear_would_be_worse(errors):
    # Measured: 1.47 on the demo, 3.5 on random weights.
    assert errors["static, every Linear (not offered)"] >= 1.2 * errors["fp8, static, max"]


def test_better_rounding_of_weights_cannot_pay(errors):
    """Measured on the demo: 14 % of the error is the weights', and no row wants a clip. So codes stay the nearest."""
    assert 0.75 * errors["int8"] <= errors["int8, exact weights (not offered)"] < errors["int8"]
    assert errors["int8, clip chosen by error (not offered)"] >= 0.95 * errors["int8"]


def test_smoothing_holds_against_outliers(errors):
    """Measured: as if there were none, where int8 without smoothing loses the picture."""
    for factor in (30, 200):
        assert errors[f"int8, outliers x {factor}"] <= 1.1 * errors["int8"]
        assert errors[f"int8, not smoothed, outliers x {factor} (not offered)"] >= 3 * errors["int8"]
