"""Products of the time's weights, taken apart."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from support.small_graphs import FLOAT, SmallGraph, operators, picture, run, whole_numbers

from export.graph.passes.single_rows import sum_single_rows

NAME = "layers.0.adaln_modulation.weight"
SCALES = np.array([1, 2, 4, 0.5, 0.25], np.float32)
"""Powers of two: every product by them is exact."""
HALF = ir.DataType.FLOAT16


def coded_weight(graph, name=NAME, dtype=FLOAT, scale=SCALES):
    """(5, 4)"""
    codes = graph.constant(name, whole_numbers(1, 5, 4).astype(ml_dtypes.float8_e4m3fn))
    attributes = {"axis": 0} if scale.ndim else {}
    scale, node = graph.constant(f"{name}_scale", scale), f"{name}_dequantized"
    return graph.add(
        "DequantizeLinear", codes, scale, name=node, shape=(5, 4), dtype=dtype, output_dtype=dtype.value, **attributes
    )


def product(graph, x, weight):
    dtype = weight.dtype
    turned = graph.add("Transpose", weight, name="t", shape=(4, 5), dtype=dtype, perm=[1, 0])
    return graph.add("MatMul", x, turned, name="m", shape=(*x.shape[:-1], 5), dtype=dtype)


def end(graph, value):
    return graph.add("Neg", value, name="end", shape=value.shape, dtype=value.dtype)


SUM = ["DequantizeLinear", "Cast", "Unsqueeze", "Mul", "ReduceSum", "Cast"]


@pytest.mark.parametrize("dtype", [FLOAT, HALF], ids=["float32", "float16"])
@pytest.mark.parametrize("shape", [(2, 4), (2, 1, 4)], ids=str)
def test_a_matrix_product_becomes_a_sum(shape, dtype):
    graph = SmallGraph()
    x = graph.input("x", *shape, dtype=dtype)
    model = graph.model(end(graph, product(graph, x, coded_weight(graph, dtype=dtype))))
    feeds = {"x": whole_numbers(0, *shape).astype(dtype.numpy())}
    (wanted,) = run(model, feeds)
    assert sum_single_rows(model)
    assert operators(model) == [*SUM, "Neg"]
    rows = next(node for node in model.graph if node.op_type == "DequantizeLinear")
    assert rows.name == f"{NAME}_dequantized_rows" and rows.outputs[0].dtype == FLOAT
    assert "output_dtype" not in rows.attributes, "the sum is in the scales' own type, float32"
    (got,) = run(model, feeds)
    assert np.array_equal(got, wanted) and got.dtype == wanted.dtype and got.shape == wanted.shape
    assert not sum_single_rows(model), "there is no product left"


@pytest.mark.parametrize("transposed", [False, True], ids=["weight", "its transpose"])
def test_a_bias_is_added_behind_the_sum(transposed):
    graph = SmallGraph()
    x, weight = graph.input("x", 2, 4), coded_weight(graph, "t_embedding.mlp_in.weight")
    bias = graph.constant("bias", whole_numbers(2, 5))
    if transposed:
        weight = graph.add("Transpose", weight, name="t", shape=(4, 5), perm=[1, 0])
    model = graph.model(end(graph, graph.add("Gemm", x, weight, bias, name="g", shape=(2, 5), transB=not transposed)))
    feeds = {"x": whole_numbers(0, 2, 4)}
    (wanted,) = run(model, feeds)
    assert sum_single_rows(model)
    assert operators(model) == [*SUM, "Add", "Neg"]
    assert np.array_equal(run(model, feeds)[0], wanted)


def of_another_weight(graph):
    return end(graph, product(graph, graph.input("x", 2, 4), coded_weight(graph, "layers.0.attention.o.weight")))


def many_rows(graph):
    return end(graph, product(graph, graph.input("x", 2, 3, 4), coded_weight(graph)))


def one_scale(graph):
    return end(graph, product(graph, graph.input("x", 2, 4), coded_weight(graph, scale=np.float32(2).reshape(()))))


def with_a_factor(graph):
    x, weight = graph.input("x", 2, 4), coded_weight(graph)
    return end(graph, graph.add("Gemm", x, weight, name="g", shape=(2, 5), transB=1, alpha=2.0))


def not_transposed(graph):
    return end(graph, graph.add("MatMul", graph.input("x", 2, 5), coded_weight(graph), name="m", shape=(2, 4)))


def read_twice(graph):
    weight = coded_weight(graph)
    other = graph.add("ReduceSum", weight, name="sum", shape=(1, 1))
    return graph.add("Add", product(graph, graph.input("x", 2, 4), weight), other, name="end", shape=(2, 5))


@pytest.mark.parametrize("build", [of_another_weight, many_rows, one_scale, with_a_factor, not_transposed, read_twice])
def test_near_misses_stay(build):
    graph = SmallGraph()
    model = graph.model(build(graph))
    before = picture(model)
    assert not sum_single_rows(model) and picture(model) == before


def test_a_result_of_the_graph_stays():
    graph = SmallGraph()
    model = graph.model(product(graph, graph.input("x", 2, 4), coded_weight(graph)))
    before = picture(model)
    assert not sum_single_rows(model) and picture(model) == before
