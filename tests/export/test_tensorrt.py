"""The float8 graphs in TensorRT's form, given to a real builder: TensorRT-RTX builds ahead of time without a GPU.

What is built here is thrown away; engines in bundles are not a feature yet.
"""

import pytest
import tensorrt_rtx as trt

from export.demo_model import DEMO_CHECKPOINT, calibrate_demo
from export.precision import precision_of
from export.recipe import Recipe
from export.stage import StageOptions, export_stage
from model.checkpoint import open_checkpoint

SHAPES = {
    "latents": ((1, 256, 128), (1, 256, 128), (2, 1024, 128)),
    "timestep": ((1,), (1,), (2,)),
    "text": ((1, 1, 128), (1, 64, 128), (2, 256, 128)),
    "rope_cos": ((257, 64), (320, 64), (1280, 64)),
    "rope_sin": ((257, 64), (320, 64), (1280, 64)),
}
"""Smallest, best and largest sizes of each input."""


@pytest.mark.parametrize("attention", [False, True], ids=["base-attention", "fp8-attention"])
def test_tensorrt_rtx_builds_the_transformer(tmp_path, attention):
    """For Ada and Blackwell. Attention nodes are not decomposable, so a build that succeeds has fused them."""
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    table = calibrate_demo(checkpoint, quiet=True)
    recipe = Recipe(activations=True, attention=attention)
    ranges = {point: table.range_of(point) for point in recipe.points("dit_cond", checkpoint.transformer.num_layers)}
    options = StageOptions(precision_of("fp8", "bf16", "ort"), recipe, ranges, form="trt")
    spec = export_stage(checkpoint, "dit_cond", options, tmp_path, quiet=True)

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(tmp_path / spec.onnx)), parser.get_error(0).desc()
    config = builder.create_builder_config()
    targets = (trt.ComputeCapability.SM89, trt.ComputeCapability.SM120)
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(target, index)
    profile = builder.create_optimization_profile()
    for name, shapes in SHAPES.items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None and plan.nbytes > 868352, "the plan holds at least the 868,352 bytes of codes"
