"""Norms without weights."""

import numpy as np
import onnx_ir as ir
import pytest
from support.small_graphs import SmallGraph, operators, picture, run

from export.graph.passes.norm_ones import shorten_ones

SHAPE = (2, 3, 4)
X = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def normed(value=1.0, axis=-1, of="x"):
    """A norm of x, scaled by what `of` has as many of as values."""
    graph = SmallGraph()
    values = {"x": graph.input("x", *SHAPE), "y": graph.input("y", *SHAPE)}
    shape = graph.add("Shape", values[of], name="shape", shape=(3,), dtype=ir.DataType.INT64)
    ones = graph.add("ConstantOfShape", shape, name="ones", shape=SHAPE, value=ir.Tensor(np.array([value], np.float32)))
    norm = graph.add("RMSNormalization", values["x"], ones, name="norm", shape=SHAPE, axis=axis, epsilon=1e-5)
    return graph.model(graph.add("Neg", norm, name="end", shape=SHAPE))


def test_scale_is_one_row():
    model = normed()
    wanted = -X / np.sqrt((X.astype(np.float64) ** 2).mean(axis=-1, keepdims=True) + 1e-5)
    assert shorten_ones(model)
    assert operators(model) == ["RMSNormalization", "Neg"]
    assert model.graph.node("norm").inputs[1].shape == ir.Shape([4])
    assert np.abs(run(model, {"x": X, "y": X})[0] - wanted).max() <= 1e-6  # two roundings of values up to 2


@pytest.mark.parametrize("change", [{"value": 2.0}, {"axis": 1}, {"of": "y"}])
def test_others_stay(change):
    model = normed(**change)
    before = picture(model)
    assert not shorten_ones(model)
    assert picture(model) == before
