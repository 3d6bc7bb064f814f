"""Attention in float8, in both forms."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference.op_run import OpRun
from support.small_graphs import FLOAT, SmallGraph, operators, picture, run, whole_numbers

from export.graph.passes.fp8_attention import SOFTMAX_SCALE, quantize_attention

HALF = ir.DataType.FLOAT16
LENGTHS = {"q": 3, "k": 5, "v": 5}
SCALES = (1.0, 0.5, 0.25)
"""With them float8 holds the operands exactly: whole numbers up to 3."""
FEEDS = {name: whole_numbers(i, 2, 1, rows, 4, largest=3) for i, (name, rows) in enumerate(LENGTHS.items())}
ROUNDING = 1e-6
"""Sums of float32 in another order. A softmax that is not quantized is off by 0.01."""


def attention(dtype=FLOAT, behind=True, heads=(2, 2, 2), **attributes):
    graph = SmallGraph()
    shapes = [(2, count, rows, 4) for count, rows in zip(heads, LENGTHS.values(), strict=True)]
    operands = [graph.input(name, *shape, dtype=dtype) for name, shape in zip(LENGTHS, shapes, strict=True)]
    result = graph.add("Attention", *operands, name="old", shape=shapes[0], dtype=dtype, **attributes)
    if behind:
        result = graph.add("Neg", result, name="end", shape=shapes[0], dtype=dtype)
    return graph.model(result)


def feeds(dtype=FLOAT):
    return {name: np.repeat(value, 2, axis=1).astype(dtype.numpy()) for name, value in FEEDS.items()}


def softmax_in_float8(q, k):
    """e4m3 codes at 1/448, dequantized."""
    scores = q @ k.swapaxes(2, 3) * np.float32(4**-0.5)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    scale = np.float32(SOFTMAX_SCALE)
    return (weights / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale


def wanted():
    q, k, v = feeds().values()
    return -(softmax_in_float8(q, k) @ v)


class TRT_QuantizedAttention(OpRun):
    """TensorRT's operator by its description: the softmax's codes have the scale of the fifth input."""

    op_domain = "trt"

    def _run(self, q, k, v, mask, scale, normalization_quantize_to_type=None, is_causal=None):
        assert mask is None and scale == np.float32(SOFTMAX_SCALE)
        assert (normalization_quantize_to_type, is_causal) == (ir.DataType.FLOAT8E4M3FN.value, 0)
        return (softmax_in_float8(q, k) @ v,)


def test_plain_onnx():
    model = attention()
    assert quantize_attention(model, 0, SCALES, "point", "ort")
    pair = ["QuantizeLinear", "DequantizeLinear"]
    scores = [*pair, *pair, "MatMul", "Mul", "Softmax"]
    assert operators(model) == ["Transpose", *scores, *pair, *pair, "MatMul", "Neg"]
    assert [value.name for value in model.graph.outputs] == ["end"]
    scales = {
        name: model.graph.initializers[f"point.{name}_scale"].const_value.numpy() for name in (*"qkv", "softmax_out")
    }
    assert tuple(scales.values()) == (*SCALES, np.float32(1 / 448))
    np.testing.assert_allclose(run(model, feeds())[0], wanted(), rtol=0, atol=ROUNDING)


def test_float8_costs_what_it_should():
    """e4m3 rounds a weight by up to 2**-4 of its value, and values are up to 3."""
    (plain,) = run(attention(), feeds())
    assert 1e-3 < np.abs(wanted() - plain).max() <= 3 * 2**-4


def test_plain_onnx_in_16_bits():
    """The softmax stays in float32; everything is dequantized to float32 and cast."""
    model = attention(HALF)
    assert quantize_attention(model, 0, SCALES, "point", "ort")
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    assert softmax.outputs[0].dtype == FLOAT
    assert {v.dtype for node in model.graph if node.op_type == "MatMul" for v in node.inputs} == {HALF}
    (got,) = run(model, feeds(HALF))
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, wanted(), rtol=0, atol=3 * 2**-9)  # float16 results up to 3, and weights up to 1


def test_tensorrt_operator():
    model = attention()
    assert quantize_attention(model, 0, SCALES, "point", "trt")
    assert operators(model) == ["QuantizeLinear", "DequantizeLinear"] * 3 + ["TRT_QuantizedAttention", "Neg"]
    fused = next(node for node in model.graph if node.domain == "trt")
    assert [v.name if v else None for v in fused.inputs] == [
        *(f"point.{name}_dequantized" for name in "qkv"),
        None,
        "point.softmax_scale",
    ]
    assert model.graph.opset_imports["trt"] == 1
    (got,) = run(model, feeds(), new_ops=[TRT_QuantizedAttention])
    np.testing.assert_allclose(got, wanted(), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("form", ["ort", "trt"])
def test_attentions_keep_their_numbers(form):
    """The second is still the second when the first has become something else."""
    graph = SmallGraph()
    operands = [graph.input(name, 2, 2, rows, 4) for name, rows in LENGTHS.items()]
    results = [graph.add("Attention", *operands, name=f"a{i}", shape=(2, 2, 3, 4)) for i in range(2)]
    model = graph.model(graph.add("Sub", *results, name="end", shape=(2, 2, 3, 4)))
    for index in range(2):
        quantize_attention(model, index, SCALES, f"point{index}", form)
    assert "Attention" not in operators(model)
    (got,) = run(model, feeds(), new_ops=[TRT_QuantizedAttention])
    assert np.array_equal(got, np.zeros_like(got))


@pytest.mark.parametrize("form", ["ort", "trt"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"is_causal": 1}, "it is causal or has a mask"),
        ({"behind": False}, "its result is an output of the graph"),
        ({"heads": (2, 1, 1)}, "it has fewer heads of keys than of queries"),
    ],
)
def test_other_attentions_are_refused(options, message, form):
    model = attention(**options)
    before = picture(model)
    with pytest.raises(ValueError, match=f"point: the attention old is to be quantized, but {message}"):
        quantize_attention(model, 0, SCALES, "point", form)
    assert picture(model) == before


def test_operands_of_three_dimensions_are_refused():
    graph = SmallGraph()
    operands = [graph.input(name, 2, rows, 8) for name, rows in LENGTHS.items()]
    heads = {"q_num_heads": 2, "kv_num_heads": 2}
    model = graph.model(graph.add("Attention", *operands, name="old", shape=(2, 3, 8), **heads))
    with pytest.raises(ValueError, match=r"its operands are .*, wanted \(B, heads, L, head_dim\) with a number"):
        quantize_attention(model, 0, SCALES, "point", "ort")


def test_numbers_that_there_are_not():
    model = attention()
    with pytest.raises(ValueError, match="point: attention 1 is to be quantized, but the graph has 1"):
        quantize_attention(model, 1, SCALES, "point", "ort")
    quantize_attention(model, 0, SCALES, "point", "ort")
    with pytest.raises(ValueError, match=r"is to be quantized, but it is quantized already"):
        quantize_attention(model, 0, SCALES, "point", "ort")
