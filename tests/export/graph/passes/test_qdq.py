"""Weights as codes with row scales, and activations between Q/DQ pairs."""

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import pytest
import torch
from support.small_graphs import FLOAT, SmallGraph, operators, picture, run, whole_numbers

from export.graph.passes.codes import FP8
from export.graph.passes.qdq import quantize_input, quantize_weights
from model.checkpoint.row_codes import quantize_rows
from model.checkpoint.sources import Known

HALF = ir.DataType.FLOAT16
NAMES = ("a.weight", "b.weight")


def exact(seed):
    """A weight (5, 4) that float8 holds exactly: with a 7 in each row the scale is 1/64, and the codes 64, 128, …"""
    value = whole_numbers(seed, 5, 4)
    value[:, 0] = 7
    return Known(torch.from_numpy(value))


def products(graph, inputs, dtype=FLOAT, names=NAMES):
    for x, name in zip(inputs, names, strict=True):
        weight = graph.parameter(name, 5, 4, dtype=dtype)
        turned = graph.add("Transpose", weight, name=f"{name}_t", shape=(4, 5), dtype=dtype, perm=[1, 0])
        yield graph.add("MatMul", x, turned, name=f"{name}_m", shape=(2, 3, 5), dtype=dtype)


def two_products(dtype=FLOAT):
    """A model of two products of one input, and the sources of their weights."""
    graph = SmallGraph()
    x = graph.input("x", 2, 3, 4, dtype=dtype)
    return graph.model(*products(graph, (x, x), dtype)), {name: exact(i) for i, name in enumerate(NAMES)}


def results(model, sources, dtype=FLOAT):
    values = {name: source.read().numpy().astype(dtype.numpy()) for name, source in sources.items()}
    return run(model, {"x": whole_numbers(9, 2, 3, 4).astype(dtype.numpy())}, values)


@pytest.mark.parametrize(
    ("form", "dtype", "behind"),
    [("ort", FLOAT, []), ("trt", FLOAT, []), ("ort", HALF, ["Cast"]), ("trt", HALF, [])],
    ids=str,
)
def test_weights_become_codes_and_row_scales(form, dtype, behind):
    model, sources = two_products(dtype)
    wanted = results(model, sources, dtype)
    assert quantize_weights(model, sources, NAMES, form)
    assert operators(model) == ["DequantizeLinear", *behind, "Transpose", "MatMul"] * 2
    for name, source in sources.items():
        codes, scales = quantize_rows(source.read())
        stored = [model.graph.initializers[n].const_value for n in (name, f"{name}_scale")]
        assert [tensor.dtype for tensor in stored] == [FP8.dtype, FLOAT]
        assert stored[0].tobytes() == codes.view(torch.uint8).numpy().tobytes()
        assert stored[1].tobytes() == scales.numpy().tobytes()
    for node in model.graph:
        if node.op_type == "DequantizeLinear":
            to = node.attributes.get("output_dtype")
            assert node.attributes["axis"].as_int() == 0
            assert (to and to.as_int()) == (HALF if (form, dtype) == ("trt", HALF) else None)
    # Whole numbers: float8 holds the weights, and the sums are exact.
    assert all(map(np.array_equal, results(model, sources, dtype), wanted))


@dataclass
class Counted:
    """A weight that counts how often it is quantized."""

    coded: bool
    calls: list[str] = field(default_factory=list)

    def quantized(self):
        self.calls.append("quantized")
        return quantize_rows(exact(0).read())


@pytest.mark.parametrize(("coded", "calls"), [(False, 1), (True, 2)], ids=["made here", "from the file"])
def test_a_float_weight_is_quantized_once_for_codes_and_scales(coded, calls):
    """And nothing is kept of codes that can be read again, which would double the memory."""
    model, sources = two_products()
    weight = sources[NAMES[0]] = Counted(coded)
    quantize_weights(model, sources, NAMES[:1], "ort")
    assert not weight.calls, "nothing is read before it is written"
    for name in (NAMES[0], f"{NAMES[0]}_scale"):
        model.graph.initializers[name].const_value.tobytes()
    assert len(weight.calls) == calls


def test_no_weights_no_change():
    model, sources = two_products()
    before = picture(model)
    assert not quantize_weights(model, sources, (), "ort") and not quantize_input(model, (), 1.0, "point", "ort")
    assert picture(model) == before


def test_weights_that_cannot_be_quantized():
    graph = SmallGraph()
    (result,) = products(graph, (graph.input("x", 2, 3, 4),), names=NAMES[:1])
    weight = graph.parameters[NAMES[0]]
    other = graph.add("Neg", weight, name="other", shape=(5, 4))
    alone = graph.parameter(NAMES[1], 5, 4)
    model, sources = graph.model(result, other, alone), {name: exact(0) for name in (*NAMES, "c.weight")}
    before = picture(model)
    for name, message in ((NAMES[0], "2 nodes read it"), (NAMES[1], "0 nodes read it"), ("c.weight", "has no weight")):
        with pytest.raises(ValueError, match=f"{name} is to be quantized, but .*{message}"):
            quantize_weights(model, sources, [name], "ort")
    assert picture(model) == before


@pytest.mark.parametrize(("form", "dtype"), [("ort", FLOAT), ("trt", FLOAT), ("ort", HALF), ("trt", HALF)], ids=str)
def test_products_of_one_input_share_a_pair(form, dtype):
    model, sources = two_products(dtype)
    quantize_weights(model, sources, NAMES, form)
    wanted = results(model, sources, dtype)
    assert quantize_input(model, NAMES, 1.0, "point", form)
    kinds = operators(model)
    assert kinds.count("QuantizeLinear") == 1 and kinds.count("DequantizeLinear") == 3
    quantize = next(node for node in model.graph if node.op_type == "QuantizeLinear")
    assert [value.name for value in quantize.inputs[1:]] == ["point_scale", "fp8_zero"]
    assert quantize.inputs[0].dtype == (dtype if form == "trt" else FLOAT)
    lefts = {node.inputs[0] for node in model.graph if node.op_type == "MatMul"}
    assert len(lefts) == 1 and lefts.pop().dtype == dtype
    # float8 holds whole numbers up to 16: with the scale 1 they come back.
    assert all(map(np.array_equal, results(model, sources, dtype), wanted))


def test_values_are_rounded_and_clipped_to_the_scale():
    """The pair is no mere decoration: 9 is beyond 448 * (1 / 64) = 7."""
    model, sources = two_products()
    quantize_weights(model, sources, NAMES, "ort")
    quantize_input(model, NAMES, 1 / 64, "point", "ort")
    x, weight = np.full((2, 3, 4), 9, np.float32), sources[NAMES[0]].read().numpy()
    assert np.array_equal(run(model, {"x": x})[0], np.full_like(x, 7) @ weight.T)


def test_the_input_is_taken_before_its_cast():
    graph = SmallGraph()
    cast = graph.add("Cast", graph.input("x", 2, 3, 4), name="cast", shape=(2, 3, 4), dtype=HALF, to=HALF.value)
    model = graph.model(*products(graph, (cast,), HALF, NAMES[:1]))
    quantize_weights(model, {NAMES[0]: exact(0)}, NAMES[:1], "trt")
    quantize_input(model, NAMES[:1], 1.0, "point", "trt")
    quantize = next(node for node in model.graph if node.op_type == "QuantizeLinear")
    assert quantize.inputs[0].name == "x" and quantize.inputs[0].dtype == FLOAT


def test_inputs_that_cannot_be_quantized():
    graph = SmallGraph()
    inputs = graph.input("x", 2, 3, 4), graph.input("y", 2, 3, 4)
    model = graph.model(*products(graph, inputs))
    with pytest.raises(ValueError, match=r"way of the weight is Transpose -> MatMul, wanted DequantizeLinear -> "):
        quantize_input(model, NAMES, 1.0, "point", "ort")
    with pytest.raises(ValueError, match=r"input of c.weight .* is missing, wanted"):
        quantize_input(model, ["c.weight"], 1.0, "point", "ort")
    quantize_weights(model, {name: exact(0) for name in NAMES}, NAMES, "ort")
    before = picture(model)
    with pytest.raises(ValueError, match=r"^point is to be quantized, but the products of a.weight, b.weight differ"):
        quantize_input(model, NAMES, 1.0, "point", "ort")
    assert picture(model) == before
