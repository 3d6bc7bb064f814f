"""What is quantized at which precision."""

from calibration.points import POINTS, PRODUCTS
from export.graph.recipe import OPERANDS, unmatched


def test_misspelt_patterns_are_found():
    patterns = ("dit_cond.layers.0.*", "dit_cond.layer.0.*", "layers.0.*")
    assert unmatched(patterns, ("dit_cond",), 2) == ["dit_cond.layer.0.*", "layers.0.*"]


def test_recipe_knows_all_points_of_calibration():
    assert {*PRODUCTS, *OPERANDS} == set(POINTS)
