"""Put codes into a traced graph: weights as float8 or int8 with row scales, activations between Q/DQ pairs.

Weights. Every quantized ``Linear`` weight W (out, in) becomes

    DequantizeLinear(codes (out, in) e4m3, scale (out,) float32, axis=0, output_dtype=base) -> Transpose -> MatMul

which is W8A16: the codes and scales of a float8 checkpoint go in as they are in the file, bit for bit, and a float
checkpoint is quantized once by the release's own rule (`model.checkpoint.row_codes`). TensorRT keeps the codes in the
plan and fuses the pattern into an FP8 GEMM, with the row scales in its epilogue; ONNX Runtime multiplies the weights
out when it loads.

Activations. The input x of a quantized matrix product becomes

    QuantizeLinear(x, s, zero point float8e4m3fn) -> DequantizeLinear(s, output_dtype=base) -> MatMul

with one static scale s = range / 448 for the tensor, which makes the product W8A8. x is taken in float32, before the
cast to the base type, and the result of DequantizeLinear has the base type: float32 there would double the memory
of the activations in TensorRT (measured by NVIDIA for FLUX.2: 12.9 GB against 1 GB).

int8 weights are the same with other codes; their activations have one scale for each token, which those of float8 have
by default as well (`export.graph.passes.token_scales`).

Form. The patterns above are TensorRT's (``trt``). ONNX Runtime 1.31 has no kernel for a DequantizeLinear whose scale
and result differ in type, so its form (``ort``) dequantizes to float32 and casts to the base type. They are the same
where the base type is float32. Its int8 weights are stored as they are multiplied, (in, out) with ``axis=1`` and
without Transpose: it then reads the codes from the file as they are, where it would else keep a turned copy.

Nothing here decides what to quantize; see `export.graph.recipe`. What the larger tools do and this does not: pick nodes
by pattern, quantize convolutions, choose scales.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor

from export.graph.passes.codes import FP8, INT8, Codes, Form
from export.graph.passes.editing import dtype_of, only_reader, scalar, transposes
from model.checkpoint.row_codes import E4M3_MAX
from model.checkpoint.sources import Sources, Weight


def quantize_weights(model: ir.Model, sources: Sources, weights: Iterable[str], form: Form, codes: Codes = FP8) -> bool:
    """Replace the initializers `weights` (without values yet) by DequantizeLinear of codes and row scales.

    Returns:
        Whether the graph has changed: not if there are no `weights`.

    Raises:
        ValueError: the graph has no such weight, or something other than a single node reads it. The graph is then
            partly changed.
    """
    changed = False
    for name in weights:
        _quantize_weight(model.graph, name, sources[name], form, codes)
        changed = True
    return changed


def _quantize_weight(graph: ir.Graph, name: str, source: Weight, form: Form, kind: Codes) -> None:
    value = graph.initializers.get(name)
    if value is None or value.dtype is None or value.shape is None:
        raise ValueError(f"{name} is to be quantized, but the graph has no weight of that name with a type and a shape")
    reader = only_reader(value)
    if reader is None:
        raise ValueError(f"{name} is to be quantized, but {len(value.uses())} nodes read it, wanted one")
    turned = kind is INT8 and form == "ort"
    if turned and not transposes(reader):
        raise ValueError(f"{name} is to be quantized, but a {reader.op_type} reads it, wanted a Transpose")
    del graph.initializers[name]
    read = _codes_reader(source, kind)
    shape = value.shape[::-1] if turned else value.shape
    codes = _initializer(graph, name, kind.dtype, shape, lambda: read()[0].T if turned else read()[0])
    scale = _initializer(graph, f"{name}_scale", ir.DataType.FLOAT, value.shape[:1], lambda: read()[1])
    # Integer products give float32 in ONNX Runtime, whatever the base type is.
    base = ir.DataType.FLOAT if turned else value.dtype
    nodes = _dequantize([codes, scale], base, f"{name}_dequantized", form, axis=1 if turned else 0)
    # Beside it, so that a runtime that keeps the order has no more than one weight multiplied out.
    graph.insert_before(reader, nodes)
    ir.convenience.replace_all_uses_with(reader.outputs[0] if turned else value, nodes[-1].outputs[0])
    if turned:
        graph.remove(reader, safe=True)


def quantize_input(model: ir.Model, weights: Sequence[str], scale: float, name: str, form: Form) -> bool:
    """Put one Q/DQ pair before the products of one activation with each of `weights`, which share it.

    `quantize_weights` must have been there first. `name` names the scale, which is float32 and without dimensions.

    Returns:
        Whether the graph has changed: not if there are no `weights`.

    Raises:
        ValueError: a weight is not quantized, or is not that of one product; or the products differ in their input.
    """
    products, x = products_of_one_input(model, weights, name)
    if x is None or x.dtype is None:
        return False
    quantized = quantize_dequantize(model, uncast(x), x.dtype, scale, name, form, before=products[0])
    for product in products:
        product.replace_input_with(0, quantized)
    return True


def products_of_one_input(model: ir.Model, weights: Sequence[str], name: str) -> tuple[list[ir.Node], ir.Value | None]:
    """The products of each of `weights`, and their input; None for no `weights`. Raises as `quantize_input` does."""
    products = [_product(model, weight) for weight in weights]
    if not products:
        return [], None
    x = products[0].inputs[0]
    if any(product.inputs[0] is not x for product in products):
        raise ValueError(f"{name} is to be quantized, but the products of {', '.join(weights)} differ in their input")
    if x is None or x.dtype is None:
        raise ValueError(f"{name} is to be quantized, but the graph does not say its type")
    return products, x


def quantize_dequantize(
    model: ir.Model, x: ir.Value, base: ir.DataType, scale: float, name: str, form: Form, before: ir.Node
) -> ir.Value:
    """A Q/DQ pair of `x` (float32 or the base type), inserted in front of `before`; the result has the type `base`."""
    if form == "ort":
        x = as_float32(model.graph, x, name, before)
    s = scalar(model.graph, f"{name}_scale", np.float32(scale))
    return pair(model.graph, x, s, s, base, name, form, before, FP8)


def as_float32(graph: ir.Graph, x: ir.Value, name: str, before: ir.Node) -> ir.Value:
    """`x`, cast to float32 in front of `before` if it is of another type."""
    if x.dtype == ir.DataType.FLOAT:
        return x
    cast = ir.node("Cast", [x], attributes={"to": ir.DataType.FLOAT.value}, name=f"{name}_float32")
    cast.outputs[0].name, cast.outputs[0].type = f"{name}_float32", ir.TensorType(ir.DataType.FLOAT)
    cast.outputs[0].shape = x.shape
    graph.insert_before(before, cast)
    return cast.outputs[0]


def pair(
    graph: ir.Graph,
    x: ir.Value,
    scale: ir.Value,
    back: ir.Value,
    base: ir.DataType,
    name: str,
    form: Form,
    before: ir.Node,
    codes: Codes,
) -> ir.Value:
    """QuantizeLinear of `x` by `scale` and DequantizeLinear by `back`, in front of `before`; the result is `base`."""
    zero = _zero(graph, codes, form)
    quantize = ir.node("QuantizeLinear", [x, scale, zero], name=f"{name}_quantize")
    quantize.outputs[0].name, quantize.outputs[0].type = f"{name}_codes", ir.TensorType(dtype_of(zero))
    quantize.outputs[0].shape = x.shape
    dequantize = _dequantize([quantize.outputs[0], back, zero], base, f"{name}_dequantized", form)
    graph.insert_before(before, [quantize, *dequantize])
    return dequantize[-1].outputs[0]


def uncast(x: ir.Value) -> ir.Value:
    """The tensor that `x` is a cast of, or `x` itself."""
    producer = x.producer()
    if producer is not None and producer.op_type == "Cast" and producer.inputs[0] is not None:
        x = producer.inputs[0]
    return x


def activation_scale(largest: float) -> float:
    """Scale that maps the range [-largest, largest] to e4m3's."""
    return largest / E4M3_MAX


def _product(model: ir.Model, weight: str) -> ir.Node:
    """The MatMul whose right side is a quantized weight, and nothing else reads it."""
    value, path = model.graph.initializers.get(weight), [""]
    while value is not None and (node := only_reader(value)) is not None:
        path.append(node.op_type)
        if node.op_type == "MatMul" and path[1] == "DequantizeLinear" and node.inputs[1] is value:
            return node
        if node.op_type not in ("DequantizeLinear", "Cast", "Transpose"):
            break
        value = node.outputs[0]
    raise ValueError(
        f"the input of {weight} is to be quantized, but the way of the weight is {' -> '.join(path[1:]) or 'missing'}, "
        "wanted DequantizeLinear -> Transpose -> MatMul"
    )


def _dequantize(
    inputs: list[ir.Value], base: ir.DataType, name: str, form: Form, axis: int | None = None
) -> list[ir.Node]:
    """DequantizeLinear to the base type; in ONNX Runtime's form with a Cast behind it, except for float32."""
    cast = form == "ort" and base != ir.DataType.FLOAT
    attributes: dict[str, int] = {} if axis is None else {"axis": axis}
    if base != ir.DataType.FLOAT and not cast:  # the default is the scale's type
        attributes["output_dtype"] = base.value
    nodes = [ir.node("DequantizeLinear", inputs, attributes=attributes, name=name)]
    if cast:
        nodes.append(ir.node("Cast", [nodes[0].outputs[0]], attributes={"to": base.value}, name=f"{name}_cast"))
        nodes[0].outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    nodes[-1].outputs[0].type = ir.TensorType(base)
    for node in nodes:
        assert node.name is not None
        node.outputs[0].name, node.outputs[0].shape = node.name, inputs[0].shape
    return nodes


def _codes_reader(source: Weight, codes: Codes) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """Reads codes and scales; what is quantized here is made once and kept until both are written."""
    if codes is FP8 and source.coded:
        return source.quantized
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def read() -> tuple[torch.Tensor, torch.Tensor]:
        if kept:
            return kept.pop()
        kept.append(codes.rows(source))
        return kept[0]

    return read


def _initializer(
    graph: ir.Graph,
    name: str,
    dtype: ir.DataType,
    shape: Sequence[int | ir.SymbolicDim],
    read: Callable[[], torch.Tensor],
) -> ir.Value:
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
    value.const_value = ir.LazyTensor(
        lambda: TorchTensor(read().contiguous(), name=name), dtype=dtype, shape=ir.Shape(shape), name=name
    )
    graph.initializers[name] = value
    return value


def _zero(graph: ir.Graph, codes: Codes, form: Form) -> ir.Value:
    """The zero point, whose type is what QuantizeLinear writes; one for the whole graph."""
    name = f"{codes.name}_zero"
    return graph.initializers.get(name) or scalar(graph, name, codes.zero(form)[()])
