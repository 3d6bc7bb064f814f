"""Engines really built by TensorRT-RTX for Ada and Blackwell, without either."""

from calibration.points import layers_of
from export.engine.plan import EngineOptions, build_engine
from export.engine.sizes import Extent, Limits, size_ranges
from export.graph.precision import precision_of
from export.graph.recipe import recipe_of
from export.graph.stage import StageOptions
from runtime.bundle.graph_specs import SizeRange

BOTH = ("sm89", "sm120")
SIZES = size_ranges(Extent(SizeRange(256, 1024, 2048), SizeRange(1, 256, 2048)), Limits(256, 2048, 2048), 16)
"""One profile for everything."""
SMALL_SIZES = size_ranges(Extent(SizeRange(256, 512, 768), SizeRange(1, 256, 2048)), Limits(256, 2048, 2048), 16)
"""Another for smaller pictures."""


def stage_options(checkpoint, stage, attention="base", precision="fp8", linked=True, base="bf16", activations=None):
    """How a stage is made for engines; static ranges are all 8."""
    types = precision_of(precision, base if precision.startswith(("fp8", "int8")) else None, "rtx", activations)
    recipe = recipe_of(types, attention)
    points = recipe.points(stage, layers_of(checkpoint, stage))
    return StageOptions(types, recipe, dict.fromkeys(points, 8.0), "trt", linked)


def engine(
    checkpoint,
    stage,
    folder,
    attention="base",
    targets=BOTH,
    precision="fp8",
    base="bf16",
    activations=None,
    profiles=(SIZES,),
):
    """What the manifest says of an engine of one stage, its files, and its report."""
    options = stage_options(checkpoint, stage, attention, precision, base=base, activations=activations)
    return build_engine(checkpoint, stage, options, EngineOptions("rtx", targets, profiles), folder, quiet=True)
