"""Engines really built by TensorRT-RTX for Ada and Blackwell, without either."""

from calibration.points import layers_of
from export.engine.plan import EngineOptions, build_engine
from export.engine.sizes import Limits, size_ranges
from export.graph.precision import precision_of
from export.graph.recipe import recipe_of
from export.graph.stage import StageOptions

BOTH = ("sm89", "sm120")


def stage_options(checkpoint, stage, attention="base", precision="fp8", linked=True, base="bf16", activations=None):
    """How a stage is made for engines; static ranges are all 8."""
    types = precision_of(precision, base if precision.startswith(("fp8", "int8")) else None, "rtx", activations)
    recipe = recipe_of(types, attention)
    points = recipe.points(stage, layers_of(checkpoint, stage))
    return StageOptions(types, recipe, dict.fromkeys(points, 8.0), "trt", linked)


def engine(checkpoint, stage, folder, attention="base", targets=BOTH, precision="fp8", base="bf16", activations=None):
    """The report of an engine of one stage."""
    sizes = size_ranges(Limits(256, 1024, 2048, 2048), 16)
    options = stage_options(checkpoint, stage, attention, precision, base=base, activations=activations)
    return build_engine(checkpoint, stage, options, EngineOptions("rtx", targets, sizes), folder, quiet=True)
