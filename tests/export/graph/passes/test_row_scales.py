"""Row scales behind W8A8 products."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from support.small_graphs import FLOAT, SmallGraph, operators, picture, run, whole_numbers

from export.graph.passes.row_scales import scale_after_products

SCALES = np.array([1, 2, 4, 0.5, 0.25], np.float32)
"""Powers of two: every product by them is exact."""
HALF = ir.DataType.FLOAT16


def quantized_input(graph, dtype=FLOAT, shape=(2, 3, 4)):
    """x after a pair of QuantizeLinear and DequantizeLinear with the scale 1."""
    x, one = graph.input("x", *shape), graph.constant("x_scale", np.float32(1).reshape(()))
    zero = graph.constant("zero", np.zeros((), ml_dtypes.float8_e4m3fn))
    codes = graph.add("QuantizeLinear", x, one, zero, name="q", shape=shape, dtype=ir.DataType.FLOAT8E4M3FN)
    return graph.add(
        "DequantizeLinear", codes, one, zero, name="dq", shape=shape, dtype=dtype, output_dtype=dtype.value
    )


def coded_weight(graph, name="w", dtype=FLOAT, axis=0):
    codes = graph.constant(name, whole_numbers(1, 5, 4).astype(ml_dtypes.float8_e4m3fn))
    scale = graph.constant(f"{name}_scale", SCALES[: (5, 4)[axis]])
    return graph.add(
        "DequantizeLinear",
        codes,
        scale,
        name=f"{name}_dq",
        shape=(5, 4),
        dtype=dtype,
        axis=axis,
        output_dtype=dtype.value,
    )


def product(graph, x, weight, dtype=FLOAT):
    turned = graph.add("Transpose", weight, name="t", shape=(4, 5), dtype=dtype, perm=[1, 0])
    return graph.add("MatMul", x, turned, name="m", shape=(2, 3, 5), dtype=dtype)


def end(graph, value):
    return graph.add("Neg", value, name="end", shape=value.shape, dtype=value.dtype)


FEEDS = {"x": whole_numbers(0, 2, 3, 4)}


@pytest.mark.parametrize("dtype", [FLOAT, HALF], ids=["float32", "float16"])
def test_scales_move_behind_the_product_and_its_cast(dtype):
    graph = SmallGraph()
    result = product(graph, quantized_input(graph, dtype), coded_weight(graph, dtype=dtype), dtype)
    if dtype == HALF:
        result = graph.add("Cast", result, name="cast", shape=(2, 3, 5), to=FLOAT.value)
    model = graph.model(end(graph, result))
    (wanted,) = run(model, FEEDS)
    assert scale_after_products(model)
    cast = ["Cast"] if dtype == HALF else []
    pair = ["QuantizeLinear", "DequantizeLinear"]
    assert operators(model) == [*pair, "DequantizeLinear", "Transpose", "MatMul", *cast, "Mul", "Neg"]
    nodes = {node.name: node for node in model.graph}
    assert [value.name for value in nodes["w_dq_codes"].inputs] == ["w", "unit_scale"]
    assert "axis" not in nodes["w_dq_codes"].attributes
    assert nodes["w_dq_scaled"].inputs[1].name == "w_scale" and nodes["end"].inputs[0].name == "w_dq_scaled"
    assert np.array_equal(run(model, FEEDS)[0], wanted)
    assert not scale_after_products(model), "there is nothing left to move"


def test_two_products_share_the_scale_of_one():
    graph = SmallGraph()
    x = quantized_input(graph)
    results = []
    for name in "ab":
        turned = graph.add("Transpose", coded_weight(graph, name), name=f"{name}_t", shape=(4, 5), perm=[1, 0])
        results.append(graph.add("MatMul", x, turned, name=f"{name}_m", shape=(2, 3, 5)))
    model = graph.model(graph.add("Add", *results, name="end", shape=(2, 3, 5)))
    (wanted,) = run(model, FEEDS)
    assert scale_after_products(model)
    assert list(model.graph.initializers).count("unit_scale") == 1
    assert np.array_equal(run(model, FEEDS)[0], wanted)


def plain_input(graph):
    """W8A16: TensorRT keeps such scales in the product."""
    return end(graph, product(graph, graph.input("x", 2, 3, 4), coded_weight(graph)))


def with_bias(graph):
    """Scaled behind the product, the bias would be scaled as well."""
    x, bias = quantized_input(graph, shape=(6, 4)), graph.constant("bias", whole_numbers(2, 5))
    return end(graph, graph.add("Gemm", x, coded_weight(graph), bias, name="g", shape=(6, 5), transB=1))


def scales_of_columns(graph):
    return end(graph, product(graph, quantized_input(graph), coded_weight(graph, axis=1)))


def read_twice(graph):
    weight = coded_weight(graph)
    other = graph.add("ReduceSum", weight, name="sum", shape=(1, 1))
    return graph.add("Add", product(graph, quantized_input(graph), weight), other, name="end", shape=(2, 3, 5))


def on_the_left(graph):
    x = quantized_input(graph)
    turned = graph.add("Transpose", x, name="xt", shape=(2, 4, 3), perm=[0, 2, 1])
    return end(graph, graph.add("MatMul", coded_weight(graph), turned, name="m", shape=(2, 5, 3)))


@pytest.mark.parametrize("build", [plain_input, with_bias, scales_of_columns, read_twice, on_the_left])
def test_near_misses_stay(build):
    graph = SmallGraph()
    model = graph.model(build(graph))
    before = picture(model)
    assert not scale_after_products(model) and picture(model) == before


def test_a_result_of_the_graph_stays():
    graph = SmallGraph()
    model = graph.model(product(graph, quantized_input(graph), coded_weight(graph)))
    before = picture(model)
    assert not scale_after_products(model) and picture(model) == before
