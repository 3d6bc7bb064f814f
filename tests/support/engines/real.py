"""Engines really built by TensorRT-RTX for Ada and Blackwell, without either."""

from export.engine.plan import EngineOptions, build_engine
from export.engine.sizes import Limits, size_ranges
from export.graph.precision import precision_of
from export.graph.recipe import Recipe
from export.graph.stage import StageOptions

BOTH = ("sm89", "sm120")


def stage_options(checkpoint, stage, attention, precision="fp8", linked=True, base="bf16"):
    types = precision_of(precision, base if precision.startswith("fp8") else None, "rtx")
    recipe = Recipe(types.activations_fp8, types.activations_fp8 and attention == "fp8")
    points = recipe.points(stage, checkpoint.transformer.num_layers)
    return StageOptions(types, recipe, dict.fromkeys(points, 8.0), "trt", linked)


def engine(checkpoint, stage, folder, attention="fp8", targets=BOTH, precision="fp8"):
    """The report of an engine of one stage."""
    sizes = size_ranges(Limits(256, 1024, 2048, 2048), 16)
    options = stage_options(checkpoint, stage, attention, precision)
    return build_engine(checkpoint, stage, options, EngineOptions("rtx", targets, sizes), folder, quiet=True)
