"""Every precision is built from a 4-bit checkpoint."""

import onnx
import pytest
import torch
from support.feeding import feeds
from support.measure import relative_error

from calibration.points import names_of
from export.graph.precision import precision_of
from export.graph.recipe import recipe_of
from export.graph.stage import StageOptions, export_stage
from model.checkpoint.directory import open_checkpoint
from runtime.backend.ort import opener

BOUNDS = {"fp32": 1e-5, "fp16": 1e-3, "fp8-weight-only": 0.08, "fp8": 0.1}
"""Of a velocity's relative error: the project's for float32; for the others about twice their largest rounding error,
2^-11 and 2^-4 (measured: 1.1e-4, 0.036 and 0.040). Other weights give more than 0.5."""


def exported(peer, folder, precision):
    checkpoint = open_checkpoint(peer("head64", "original-nf4")[1])
    types = precision_of(precision, None, "ort")
    ranges = dict.fromkeys(names_of("dit_cond", 1), 6.0)
    options = StageOptions(types, recipe_of(types), ranges)
    return checkpoint, export_stage(checkpoint, "dit_cond", options, folder, quiet=True)[0]


@pytest.mark.parametrize("precision", BOUNDS)
def test_velocity(peer, tmp_path, precision):
    checkpoint, spec = exported(peer, tmp_path, precision)
    values = feeds("dit_cond", checkpoint, 9, (3, 5), 2)
    got = opener(tmp_path, "cpu", 1)("dit_cond", spec)(**values)
    module = checkpoint.load("dit_cond")
    wanted = module(**{name: torch.from_numpy(value) for name, value in values.items()}).numpy()
    error = relative_error(got, wanted)
    assert error <= BOUNDS[precision] and (precision == "fp32" or error > 1e-5)


def test_bfloat16_holds_the_values_themselves(peer, tmp_path):
    """ONNX Runtime has no bfloat16 on a CPU; the weights were rounded to it by bitsandbytes already."""
    checkpoint, spec = exported(peer, tmp_path, "bf16")
    stored = {t.name: t.raw_data for t in onnx.load(tmp_path / spec.onnx).graph.initializer}
    for name in ("layers.0.attention.qkv.weight", "layers.0.feed_forward.w2.weight", "adaln_proj.weight"):
        value = checkpoint.sources["dit_cond"][name].read()
        assert stored[name] == value.bfloat16().view(torch.int16).numpy().tobytes()
        assert torch.equal(value.bfloat16().float(), value)
