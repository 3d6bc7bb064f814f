"""Attention in float8: q, k and v with one scale each, the softmax's output at 1/448.

Two forms with the same arithmetic. ``ort`` is plain ONNX, so that the numerics can be measured on any backend:

    Q/DQ(q) @ Q/DQ(k)^T * head_dim^-1/2 -> Softmax (float32) -> Q/DQ(1/448) @ Q/DQ(v)

``trt`` is TensorRT's own operator ``trt::TRT_QuantizedAttention``, which it runs as one fused kernel. 1/448 needs no
calibration: a softmax lies in [0, 1] and 448 is e4m3's largest number. The other scales come from bounds
(`export.graph.attention_bounds`) or measured ranges, those of q and k as they enter the attention; multiplying both by
head_dim^-1/4 first, as some exporters do, changes scales and values alike and gives the same codes.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from export.graph.passes.codes import FP8, Form
from export.graph.passes.editing import dtype_of, scalar
from export.graph.passes.qdq import quantize_dequantize, uncast

SOFTMAX_SCALE = 1 / 448


def quantize_attention(model: ir.Model, index: int, scales: Sequence[float], name: str, form: Form) -> bool:
    """Turn the `index`-th Attention of the graph into float8.

    Args:
        model: with standard ``Attention`` nodes on (B, heads, L, head_dim), not causal, without a mask.
        index: counted over the Attention nodes that the traced graph had, whatever has become of those before.
        scales: of q, k and v.
        name: prefix of the new nodes and scales.
        form: see the module's docstring.

    Returns:
        Whether the graph has changed: always.

    Raises:
        ValueError: there is no such node, it is quantized already, it is another kind of attention, or its result is
            an output of the graph.
    """
    nodes = [node for node in model.graph if node.op_type == "Attention" or node.metadata_props.get(_MARK)]
    if index >= len(nodes):
        raise ValueError(f"{name}: attention {index} is to be quantized, but the graph has {len(nodes)}")
    node = nodes[index]
    if problem := _objection(node):
        raise ValueError(f"{name}: the attention {node.name} is to be quantized, but {problem}")
    build = _fused if form == "trt" else _primitive
    last = build(model, node, scales, name)
    last.metadata_props[_MARK] = name
    old, new = node.outputs[0], last.outputs[0]
    new.type, new.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new)
    model.graph.remove(node, safe=True)
    return True


_MARK = "quantized_attention"


def _objection(node: ir.Node) -> str | None:
    """Why a node cannot be replaced by a float8 attention, if it cannot."""
    if node.op_type != "Attention":
        return "it is quantized already"
    shapes = [value.shape if value is not None else None for value in node.inputs[:3]]
    if any(shape is None or len(shape) != 4 or not isinstance(shape[3], int) for shape in shapes):
        return f"its operands are {shapes}, wanted (B, heads, L, head_dim) with a number for head_dim"
    heads = {shape[1] for shape in shapes if shape is not None}
    if len(heads) != 1:
        return "it has fewer heads of keys than of queries"
    causal = node.attributes.get("is_causal")
    if any(value is not None for value in node.inputs[3:]) or (causal is not None and causal.as_int()):
        return "it is causal or has a mask"
    if node.outputs[0].is_graph_output():
        return "its result is an output of the graph"
    return None


def _fused(model: ir.Model, node: ir.Node, scales: Sequence[float], name: str) -> ir.Node:
    model.graph.opset_imports["trt"] = 1
    q, k, v = (
        quantize_dequantize(model, uncast(value), dtype_of(value), scale, f"{name}.{operand}", "trt", before=node)
        for operand, value, scale in zip("qkv", _operands(node), scales, strict=True)
    )
    softmax = scalar(model.graph, f"{name}.softmax_scale", np.float32(SOFTMAX_SCALE))
    fused = ir.node(
        "TRT_QuantizedAttention",
        [q, k, v, None, softmax],
        domain="trt",
        name=f"{name}.fused",
        attributes={"normalization_quantize_to_type": FP8.dtype.value, "is_causal": 0},
    )
    fused.outputs[0].name = f"{name}.attended"
    model.graph.insert_before(node, fused)
    return fused


def _primitive(model: ir.Model, node: ir.Node, scales: Sequence[float], name: str) -> ir.Node:
    q, k, v = _operands(node)
    base, float32 = dtype_of(q), ir.DataType.FLOAT
    head_dim = q.shape[3] if q.shape is not None else None
    assert isinstance(head_dim, int)  # _objection has seen it

    def add(op_type: str, inputs: list[ir.Value], output: str, dtype: ir.DataType, **attributes: object) -> ir.Value:
        new = ir.node(op_type, inputs, attributes=attributes, name=f"{name}.{output}")  # type: ignore[arg-type]
        new.outputs[0].name, new.outputs[0].type = f"{name}.{output}", ir.TensorType(dtype)
        model.graph.insert_before(node, new)
        return new.outputs[0]

    def quantized(value: ir.Value, scale: float, operand: str) -> ir.Value:
        return quantize_dequantize(model, value, base, scale, f"{name}.{operand}", "ort", before=node)

    # k is transposed before it is quantized, so that DequantizeLinear feeds MatMul directly: FP8 fusions look for
    # that, and ONNX Runtime 1.31 moves a DequantizeLinear across a Transpose and then finds no kernel for it.
    transposed = add("Transpose", [uncast(k)], "k_t", float32, perm=[0, 1, 3, 2])
    scores = add("MatMul", [quantized(uncast(q), scales[0], "q"), quantized(transposed, scales[1], "k")], "qk", base)
    if base != float32:
        scores = add("Cast", [scores], "qk_f32", float32, to=float32.value)
    factor = scalar(model.graph, f"{name}.factor", np.float32(head_dim**-0.5))
    softmax = add("Softmax", [add("Mul", [scores, factor], "scores", float32)], "softmax", float32, axis=-1)
    weights = quantized(softmax, SOFTMAX_SCALE, "softmax_out")
    attended = add("MatMul", [weights, quantized(uncast(v), scales[2], "v")], "attended", base).producer()
    assert attended is not None
    return attended


def _operands(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
    q, k, v = node.inputs[:3]
    assert q is not None and k is not None and v is not None
    return q, k, v
