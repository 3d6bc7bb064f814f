"""Rotations of queries and keys by the operator that ONNX Runtime has a kernel for."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from support.small_graphs import SmallGraph, operators, picture, run

from export.graph.passes.rotations import rotate_by_operator
from runtime.sampling.rope import image_positions, rope_tables

BATCH, HEADS, SIZE = 2, 3, 8
COS, SIN = rope_tables(image_positions(2, 3), SIZE, 1e4, (2, 1, 1))
X = np.random.default_rng(0).standard_normal((BATCH, len(COS), HEADS, SIZE)).astype(np.float32)
FEEDS = {"x": X, "cos": COS, "sin": SIN}


def rotate(graph, x, tables, prefix, swapped=False, heads_axis=1):
    """x * cos + Concat(-second, first) * sin."""
    cos, sin = (
        graph.add("Unsqueeze", table, graph.parameters["axis"], name=f"{prefix}{name}_wide", shape=("L", 1, SIZE))
        for name, table in zip(("cos", "sin"), tables, strict=True)
    )
    node = ir.node("Split", [x], attributes={"axis": -1, "num_outputs": 2}, num_outputs=2, name=f"{prefix}split")
    graph.nodes.append(node)
    for part, name in zip(node.outputs, ("first", "second"), strict=True):
        part.name, part.type = f"{prefix}{name}", x.type
        part.shape = ir.Shape([*x.shape[:3], SIZE // 2])
    first, second = reversed(node.outputs) if swapped else node.outputs
    shape = x.shape
    negated = graph.add("Neg", second, name=f"{prefix}neg", shape=first.shape)
    turned = graph.add("Concat", negated, first, name=f"{prefix}cat", shape=shape, axis=-1)
    plain = graph.add("Mul", x, cos, name=f"{prefix}plain", shape=shape)
    crossed = graph.add("Mul", turned, sin, name=f"{prefix}crossed", shape=shape)
    return graph.add("Add", plain, crossed, name=f"{prefix}sum", shape=shape)


def rotated(axis=1, batch="B", size=SIZE, dtype=ir.DataType.FLOAT, computed=False, **changes):
    """Two layers that rotate by the same tables."""
    graph = SmallGraph()
    x = graph.input("x", batch, "L", HEADS, size, dtype=dtype)
    tables = [graph.input(name, "L", SIZE) for name in ("cos", "sin")]
    if computed:
        tables = [graph.add("Abs", table, name=f"{table.name}_abs", shape=table.shape) for table in tables]
    graph.constant("axis", np.array([axis], np.int64))
    for prefix in ("a.", "b."):
        x = graph.add(
            "Neg", rotate(graph, x, tables, prefix, **changes), name=f"{prefix}end", shape=x.shape, dtype=dtype
        )
    return graph.model(x)


def by_definition(x):
    turned = np.concatenate((-x[..., SIZE // 2 :], x[..., : SIZE // 2]), axis=-1)
    return -(x * COS[:, None] + turned * SIN[:, None])


def test_result_is_that_of_the_definition():
    model = rotated()
    assert rotate_by_operator(model)
    assert operators(model).count("RotaryEmbedding") == 2 and not {"Split", "Add", "Mul"} & {*operators(model)}
    assert operators(model).count("Expand") == 2, "one table for all layers"
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    for found in (run(model, FEEDS)[0], session.run(None, FEEDS)[0]):
        assert np.abs(found - by_definition(by_definition(X))).max() <= 2e-6  # a few roundings of values up to 4


@pytest.mark.parametrize(
    "change",
    [{"swapped": True}, {"axis": 0}, {"size": "D"}, {"dtype": ir.DataType.FLOAT16}, {"computed": True}],
    ids=["another rotation", "other tables", "unknown size", "float16", "tables that are no inputs"],
)
def test_others_stay(change):
    model = rotated(**change)
    before = picture(model)
    assert not rotate_by_operator(model)
    assert picture(model) == before
