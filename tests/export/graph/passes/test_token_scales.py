"""One scale for each token, found while running: the numbers, in both forms and types, and what must not vanish."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from support.small_graphs import FLOAT, SmallGraph, operators, picture, run

from export.graph.passes.codes import FP8, INT8
from export.graph.passes.float16_range import bound_products
from export.graph.passes.qdq import quantize_weights
from export.graph.passes.row_scales import scale_after_products
from export.graph.passes.token_scales import quantize_tokens
from model.checkpoint.sources import Known

HALF = ir.DataType.FLOAT16
NAMES = ("a.weight", "b.weight")
ROWS, COLUMNS = 5, 16


def weights(seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {name: Known(scale * torch.randn((ROWS, COLUMNS), generator=generator)) for name in NAMES}


def two_products(dtype=FLOAT, columns=COLUMNS, behind="Neg"):
    """Two products of one input, as a traced graph has them: cast to the base type and back."""
    graph = SmallGraph()
    x = graph.input("x", 2, 3, columns)
    low = x if dtype == FLOAT else graph.add("Cast", x, name="low", shape=x.shape, dtype=dtype, to=dtype.value)
    ends = []
    for name in NAMES:
        weight = graph.parameter(name, ROWS, columns, dtype=dtype)
        turned = graph.add("Transpose", weight, name=f"{name}_t", shape=(columns, ROWS), dtype=dtype, perm=[1, 0])
        y = graph.add("MatMul", low, turned, name=f"{name}_m", shape=(2, 3, ROWS), dtype=dtype)
        if dtype != FLOAT:
            y = graph.add("Cast", y, name=f"{name}_f", shape=(2, 3, ROWS), to=FLOAT.value)
        ends.append(graph.add(behind, y, name=f"{name}_end", shape=(2, 3, ROWS)))
    return graph.model(*ends)


def quantized(form, codes, dtype=FLOAT, sources=None, columns=COLUMNS):
    model, sources = two_products(dtype, columns), sources or weights()
    assert quantize_weights(model, sources, NAMES, form, codes)
    assert quantize_tokens(model, NAMES, "point", form, codes)
    if form == "trt":
        assert scale_after_products(model)
    return model, sources


def tokens():
    """(2, 3, COLUMNS) with a token of zeros, one with one huge element, and tiny ones."""
    x = np.random.default_rng(3).standard_normal((2, 3, COLUMNS)).astype(np.float32)
    x[0, 0] = 0
    x[0, 1, 7] = 1e6
    x[1, 2] *= 1e-20
    return x


def by_hand(x, source, codes):
    """-x W^T with both sides rounded, in float64."""
    limit = codes.largest
    largest = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-30))
    scaled = x * (np.float32(limit) / largest)
    rounded = np.rint(scaled) if codes is INT8 else scaled.astype(ml_dtypes.float8_e4m3fn)
    weight, scales = codes.rows(source)
    product = rounded.astype(np.float64) @ weight.double().numpy().T
    return -product * scales.double().numpy() * largest.astype(np.float64) / limit


@pytest.mark.parametrize("codes", [FP8, INT8], ids=lambda codes: codes.name)
@pytest.mark.parametrize("form", ["ort", "trt"])
def test_numbers(form, codes):
    model, sources = quantized(form, codes)
    for name, got in zip(NAMES, run(model, {"x": tokens()}), strict=True):
        wanted = by_hand(tokens(), sources[name], codes)
        assert not got[0, 0].any(), "a token of zeros stays zero"
        # float32 sums of 16 products against float64 ones, per token.
        error = np.abs(got - wanted).max(axis=-1) / np.maximum(np.abs(wanted).max(axis=-1), 1e-30)
        assert error.max() <= 1e-5


@pytest.mark.parametrize("codes", [FP8, INT8], ids=lambda codes: codes.name)
def test_types_that_engines_and_onnx_runtime_multiply(codes):
    """ONNX Runtime: unsigned activations with zero point 128, and weights (in, out) without Transpose."""
    kinds = {}
    for form in ("ort", "trt"):
        model, _ = quantized(form, codes)
        zero = model.graph.initializers[f"{codes.name}_zero"].const_value
        kinds[form] = (zero.dtype, float(zero.numpy()))
        assert operators(model).count("QuantizeLinear") == 1, "one for both products"
        assert operators(model).count("Transpose") == (0 if (form, codes) == ("ort", INT8) else 2)
    if codes is INT8:
        assert kinds == {"ort": (ir.DataType.UINT8, 128), "trt": (ir.DataType.INT8, 0)}
    else:
        assert kinds == dict.fromkeys(("ort", "trt"), (codes.dtype, 0))


def session(model, quant_qdq):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "0" if quant_qdq else "1")
    for value in model.graph.initializers.values():
        value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def test_onnx_runtime_multiplies_integers(tmp_path):
    model, sources = quantized("ort", INT8)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "0")
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    for value in model.graph.initializers.values():
        value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)
    engine = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    made = [node.op_type for node in ir.load(tmp_path / "optimized.onnx").graph]
    assert made.count("MatMulIntegerToFloat") == 2 and "DequantizeLinear" not in made
    for name, got in zip(NAMES, engine.run(None, {"x": tokens()}), strict=True):
        wanted = by_hand(tokens(), sources[name], INT8)
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("codes", [FP8, INT8], ids=lambda codes: codes.name)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_does_not_vanish(codes, value):
    """In every column, since a vectorized maximum may pass over NaN in some."""
    model, _ = quantized("ort", codes)
    engine = session(model, codes is INT8)
    for column in range(COLUMNS):
        x = tokens()
        x[1, 1, column] = value
        for got in engine.run(None, {"x": x}):
            assert not np.isfinite(got[1, 1]).all() and np.isfinite(np.delete(got.reshape(6, ROWS), 4, axis=0)).all()


@pytest.mark.parametrize("codes", [FP8, INT8], ids=lambda codes: codes.name)
@pytest.mark.parametrize("form", ["ort", "trt"])
def test_float16_holds_the_product_of_the_largest_codes(form, codes):
    """All activations and weights are the largest code, at the width of the released model's w2: 448 * 448 * 12288."""
    columns = 12288
    sources = {name: Known(torch.full((ROWS, columns), 2.0**-9)) for name in NAMES}
    model, _ = quantized(form, codes, HALF, sources, columns)
    x = np.full((2, 3, columns), 3.0, np.float32)
    for got in run(model, {"x": x}):
        # 3 * 2^-9 * 12288 = 72, the sum in float16, whose numbers are 2^-11 apart, by the reference in any order.
        np.testing.assert_allclose(got, -72, rtol=2e-2)


def test_products_that_cannot_be_quantized():
    model = two_products()
    before = picture(model)
    with pytest.raises(ValueError, match="way of the weight is Transpose -> MatMul, wanted DequantizeLinear"):
        quantize_tokens(model, NAMES, "point", "ort", FP8)
    assert not quantize_tokens(model, (), "point", "ort", FP8) and picture(model) == before
    bare, sources = two_products(behind="Identity"), weights()
    for node in [node for node in bare.graph if node.op_type == "Identity"]:
        ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0], replace_graph_outputs=True)
        bare.graph.remove(node, safe=True)
    quantize_weights(bare, sources, NAMES, "ort", FP8)
    with pytest.raises(ValueError, match="is a result of the graph, wanted one that is read"):
        quantize_tokens(bare, NAMES, "point", "ort", FP8)


class TestFloat16Range:
    """Products of plain float16 whose input has no known range."""

    @staticmethod
    def model(name, dtype=HALF):
        graph = SmallGraph()
        x = graph.input("x", 1, 2, COLUMNS)
        low = graph.add("Cast", x, name="low", shape=x.shape, dtype=dtype, to=dtype.value)
        weight = graph.parameter(name, ROWS, COLUMNS, dtype=dtype)
        turned = graph.add("Transpose", weight, name="t", shape=(COLUMNS, ROWS), dtype=dtype, perm=[1, 0])
        y = graph.add("MatMul", low, turned, name="m", shape=(1, 2, ROWS), dtype=dtype)
        y = graph.add("Cast", y, name="f", shape=(1, 2, ROWS), to=FLOAT.value)
        return graph.model(graph.add("Neg", y, name="end", shape=(1, 2, ROWS)))

    def test_beyond_the_range(self):
        name = "layers.0.feed_forward.w2.weight"
        weight = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float16)
        x = np.random.default_rng(1).standard_normal((1, 2, COLUMNS)).astype(np.float32)
        x[0, 1] *= 1e5
        plain, bounded = self.model(name), self.model(name)
        assert bound_products(bounded)
        (before,), (after,) = (run(model, {"x": x}, {name: weight}) for model in (plain, bounded))
        wanted = -(x.astype(np.float64) @ weight.astype(np.float64).T)
        assert not np.isfinite(before[0, 1]).all(), "x is beyond float16"
        # Half a step of float16, 4.9e-4, on each operand and on the result, against each token's largest result.
        assert (np.abs(after - wanted) <= 2e-3 * np.abs(wanted).max(axis=-1, keepdims=True)).all()

    @pytest.mark.parametrize(
        ("name", "dtype"), [("layers.0.attention.qkv.weight", HALF), ("layers.0.feed_forward.w2.weight", FLOAT)]
    )
    def test_others_stay(self, name, dtype):
        model = self.model(name, dtype)
        before = picture(model)
        assert not bound_products(model) and picture(model) == before
