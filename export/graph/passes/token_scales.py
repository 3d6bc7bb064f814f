"""Quantize the input of products with one scale for each token, found while running.

The input x (B, L, in) float32 of the products x W^T of quantized weights becomes

    largest = max(|x|) of each token;  factor = qmax / largest
    QuantizeLinear(x * factor, 1) -> DequantizeLinear(2^-e) -> MatMul [-> Cast to float32] -> Mul(largest * 2^2e / qmax)

with qmax = 448 (float8) or 127 (int8). No calibration is needed, no prompt can saturate, and for float8 the error is
smaller than with a static range. It costs no kernel in TensorRT: the maximum becomes part of the kernels before the
product, the factor behind it part of the next one.

e is 0 but for float16, where the sum of products of codes would not stay within the type; with e on both sides it does
(`Codes.range_exponent`), even if every code is the largest. `export.graph.passes.row_scales` gives the weights theirs
in TensorRT's form; in the other one the weights have their row scales, so that the factor behind is only 2^e.

A token of zeros has the factor qmax / 1e-30, so that it stays zero. An infinity or NaN must not vanish in rounding, or
a wrong picture would be made instead of an error: infinity makes the factor behind the product infinite; NaN stays NaN
in float8, but int8 knows none and a maximum may pass over it (ONNX Runtime's does), so for int8 a sum, which does not,
is added to the factor, times 0.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from calibration.fake_quant import SMALLEST_TOKEN
from export.graph.passes.codes import FP8, Codes, Form
from export.graph.passes.editing import adder, axis, cast_behind, constant, describe, scalar
from export.graph.passes.qdq import as_float32, pair, products_of_one_input, uncast

_FLOAT = ir.DataType.FLOAT
_UNIT = "unit_scale"


def quantize_tokens(model: ir.Model, weights: Sequence[str], name: str, form: Form, codes: Codes) -> bool:
    """Quantize the one input of the products with each of `weights`, whose codes are of the same type.

    `quantize_weights` must have been there first. `name` is the prefix of the new nodes.

    Returns:
        Whether the graph has changed: not if there are no `weights`.

    Raises:
        ValueError: a weight is not quantized, or is not that of one product; the products differ in their input; or
            the result of one is neither float32 nor cast to it.
    """
    products, x = products_of_one_input(model, weights, name)
    if x is None or x.dtype is None:
        return False
    base = _FLOAT if form == "ort" and codes is not FP8 else x.dtype
    exponent = product_exponent(base, codes, x) // 2
    back = power_of_two(model.graph, -exponent)
    scaled, inverse = _scaled(model.graph, x, name, products[0], codes, (4.0 if form == "trt" else 2.0) ** exponent)
    one = power_of_two(model.graph, 0)
    quantized = pair(model.graph, scaled, one, back, base, name, form, products[0], codes)
    for index, product in enumerate(products):
        product.replace_input_with(0, quantized)
        multiply_behind(model.graph, product, inverse, f"{name}_token_{index}_scaled")
    return True


def product_exponent(base: ir.DataType, codes: Codes, x: ir.Value) -> int:
    """Twice the e of the module's docstring for products of `x` computed in `base`."""
    width = x.shape[-1] if x.shape is not None else None
    if base != ir.DataType.FLOAT16:
        return 0
    if not isinstance(width, int):
        raise ValueError(f"{x.name} is to be quantized for float16, but the graph does not say its width")
    return codes.range_exponent(width)


def power_of_two(graph: ir.Graph, exponent: int) -> ir.Value:
    """The float32 initializer 2^exponent without dimensions."""
    name = _UNIT if exponent == 0 else f"{_UNIT}_2_{exponent}"
    return graph.initializers.get(name) or scalar(graph, name, np.float32(2.0**exponent))


def unit_scale_before(product: ir.Node) -> ir.Value | None:
    """The power of two by which the input of a product is dequantized, if `quantize_tokens` made it."""
    x = product.inputs[0]
    producer = x.producer() if x is not None else None
    scale = producer.inputs[1] if producer is not None and producer.op_type == "DequantizeLinear" else None
    return scale if scale is not None and str(scale.name).startswith(_UNIT) else None


def _scaled(
    graph: ir.Graph, x: ir.Value, name: str, before: ir.Node, codes: Codes, gain: float
) -> tuple[ir.Value, ir.Value]:
    """x times each token's factor, and the inverse (B, L, 1) of the factor times `gain`, both float32."""
    x, magnitude, largest = _largest(graph, x, name, before)
    add = adder(graph, f"{name}_token_", before)
    factor = add("Div", constant(graph, f"{codes.name}_largest", codes.largest), largest, label="factor")
    gained = constant(graph, f"{codes.name}_inverse_{gain:g}", gain / codes.largest)
    inverse = add("Mul", largest, gained, label="inverse")
    if codes is not FP8:
        total = add("ReduceSum", magnitude, axis(graph, -1), label="total", keepdims=1)
        nothing = add("Mul", total, constant(graph, "nothing", 0.0), label="nothing")
        inverse = add("Add", inverse, nothing, label="checked")
    return add("Mul", x, factor, label="in_range", like=x), inverse


def scale_tokens(graph: ir.Graph, x: ir.Value, name: str, before: ir.Node) -> tuple[ir.Value, ir.Value]:
    """x divided by each token's largest magnitude, and these (B, L, 1), both float32; in front of `before`."""
    x, _, largest = _largest(graph, x, name, before)
    add = adder(graph, f"{name}_token_", before)
    return add("Div", x, largest, label="in_range", like=x), largest


def _largest(graph: ir.Graph, x: ir.Value, name: str, before: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
    """x in float32, its magnitudes, and the largest of each token, but at least `SMALLEST_TOKEN`."""
    x = as_float32(graph, uncast(x), f"{name}_token_", before)
    add = adder(graph, f"{name}_token_", before)
    magnitude = add("Abs", x, label="magnitude", like=x)
    largest = add("ReduceMax", magnitude, axis(graph, -1), label="largest", keepdims=1)
    bounded = add("Max", largest, constant(graph, "smallest_token", SMALLEST_TOKEN), label="bounded")
    return x, magnitude, bounded


def multiply_behind(graph: ir.Graph, product: ir.Node, factor: ir.Value, name: str) -> None:
    """Multiply the float32 result of a product by `factor`; a float32 product needs no cast behind it."""
    cast = cast_behind(product.outputs[0])
    operands = [value for value in product.inputs if value is not None]
    if all(value.dtype == _FLOAT for value in operands):
        product.outputs[0].type = ir.TensorType(_FLOAT)
    last = cast or product
    if last.outputs[0].dtype != _FLOAT:
        raise ValueError(f"{name}: the result of {product.name} is {last.outputs[0].dtype}, wanted float32")
    scaled = ir.node("Mul", [last.outputs[0], factor], name=name)
    describe(scaled.outputs[0], name, last.outputs[0])
    if last.outputs[0].is_graph_output():
        raise ValueError(f"{name}: the result of {product.name} is a result of the graph, wanted one that is read")
    ir.convenience.replace_all_uses_with(last.outputs[0], scaled.outputs[0])
    scaled.replace_input_with(0, last.outputs[0])
    graph.insert_after(last, scaled)
