"""What is quantized at which precision."""

from calibration.points import POINTS, PRODUCTS
from export.demo_model import DEMO_CHECKPOINT
from export.graph.recipe import OPERANDS, unmatched
from model.checkpoint.directory import open_checkpoint


def test_misspelt_patterns_are_found():
    patterns = ("dit_cond.layers.0.*", "dit_cond.layer.0.*", "layers.0.*")
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    assert unmatched(patterns, ("dit_cond",), checkpoint) == ["dit_cond.layer.0.*", "layers.0.*"]
    assert unmatched(("text_encoder.layers.35.*", "text_encoder.layers.36.*"), checkpoint.sources, checkpoint) == [
        "text_encoder.layers.36.*"
    ]


def test_recipe_knows_all_points_of_calibration():
    assert {*PRODUCTS, *OPERANDS} == set(POINTS)
