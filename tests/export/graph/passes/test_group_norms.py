"""Group norms by the operator that ONNX Runtime has a kernel for."""

import numpy as np
import onnx_ir as ir
import onnxruntime
from support.small_graphs import SmallGraph, operators, picture, run

from export.graph.passes.group_norms import split_group_norms

SHAPE, GROUPS, EPSILON = (2, 6, 4, 3), 3, 1e-3
"""An epsilon that shows in the result, and sides that are not equal."""
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal(SHAPE).astype(np.float32) + 3
SCALE, BIAS = RANDOM.standard_normal((2, SHAPE[1])).astype(np.float32)


def normed(operator="GroupNormalization", dtype=ir.DataType.FLOAT, shape=SHAPE):
    graph = SmallGraph()
    x = graph.input("x", *shape, dtype=dtype)
    weights = (graph.constant("scale", SCALE), graph.constant("bias", BIAS))
    attributes = {"num_groups": GROUPS} if operator == "GroupNormalization" else {}
    result = graph.add(operator, x, *weights, name="norm", shape=shape, dtype=dtype, epsilon=EPSILON, **attributes)
    return graph.model(graph.add("Neg", result, name="end", shape=shape, dtype=dtype))


def by_definition(x):
    groups = x.reshape(len(x), GROUPS, -1).astype(np.float64)
    mean, variance = groups.mean(axis=2, keepdims=True), groups.var(axis=2, keepdims=True)
    plain = ((groups - mean) / np.sqrt(variance + EPSILON)).reshape(x.shape)
    return plain * SCALE[:, None, None] + BIAS[:, None, None]


def test_result_is_that_of_the_definition():
    model = normed()
    assert split_group_norms(model)
    assert "GroupNormalization" not in operators(model) and operators(model).count("InstanceNormalization") == 1
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    for found in (run(model, {"x": X})[0], session.run(None, {"x": X})[0]):
        assert np.abs(-found - by_definition(X)).max() <= 4e-6  # a few roundings of values up to 5


def test_norm_at_the_end_of_a_graph():
    graph = SmallGraph()
    x, weights = graph.input("x", *SHAPE), (graph.constant("scale", SCALE), graph.constant("bias", BIAS))
    model = graph.model(
        graph.add("GroupNormalization", x, *weights, name="norm", shape=SHAPE, epsilon=EPSILON, num_groups=GROUPS)
    )
    assert split_group_norms(model)
    assert np.abs(run(model, {"x": X})[0] - by_definition(X)).max() <= 4e-6


def test_others_stay():
    for model in (normed("InstanceNormalization"), normed(dtype=ir.DataType.FLOAT16), normed(shape=(2, 6, 12))):
        before = picture(model)
        assert not split_group_norms(model)
        assert picture(model) == before
