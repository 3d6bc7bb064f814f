"""Compute attention for some of the queries at a time, so that its scores are never in memory as a whole.

    Attention(q, k, v)
    for each chunk: Slice(q) * scale + 0 * (chunk before)[:1] -> MatMul(k^T) -> Softmax -> MatMul(v);  Concat

The VAE has one head of 512, for which neither ONNX Runtime nor TensorRT has a kernel that keeps the scores to itself:
2048 x 2048 pixels are 65,536 positions, and their scores 17 GB in float32. That many also overflow the arithmetic of
TensorRT-RTX 1.7.1's builder, which then reserves a third of the memory that it needs. A chunk's queries depend on the
chunk before by nothing but a zero, which keeps an engine from computing all chunks at once.

Chunks are equal but for the last ones: with few positions those are smaller, or empty. Every query sees every key in
one softmax, so the result is that of the operator up to rounding.
"""

import math
from collections.abc import Callable, Iterator

import onnx_ir as ir

from export.graph.passes.attention_kernels import has_fused_kernel
from export.graph.passes.codes import Form
from export.graph.passes.editing import adder, axis, dtype_of, integers, scalar

CHUNKS: dict[Form, int] = {"ort": 16, "trt": 8}
"""Chunks of the queries, by form. ONNX Runtime computes the operator's one head on one core, and the chunks on all: on
two, 16 chunks take 0.16 s of 0.29 s at 4096 positions, 2.7 s of 5.9 s at 16,384, and 0.5 ms more at 256. Engines
reserve more memory the more chunks there are: 7.8, 8.0 and 9.3 GB for a whole decoding with 4, 8 and 16."""
Add = Callable[..., ir.Value]
"""What `adder` gives."""
_ROWS = 2
"""The axis of the positions in (B, heads, L, head size)."""
_NEUTRAL = {"is_causal": 0, "softcap": 0.0}
"""Attributes that change the result, and the values at which they do not."""


def chunk_attention(model: ir.Model, chunks: int, keep_fused: bool = False) -> bool:
    """Take attentions apart into chunks of queries.

    Args:
        model: with Attention nodes on (B, heads, L, head size); others stay, and so do those with a mask, causal ones
            and those whose queries have more heads than their keys.
        chunks: how many, at least 1.
        keep_fused: leave those alone that TensorRT has a fused kernel for.

    Returns:
        Whether the graph has changed.
    """
    found = [node for node in model.graph if node.op_type == "Attention" and _matches(node)]
    if keep_fused:
        found = [node for node in found if not has_fused_kernel(node)]
    for node in found:
        _take_apart(model.graph, node, chunks)
    return bool(found)


def _matches(node: ir.Node) -> bool:
    operands, others = node.inputs[:3], node.inputs[3:]
    if any(value is None or value.shape is None or len(value.shape) != 4 for value in operands):
        return False
    if any(value is not None for value in others) or len(node.outputs) != 1:
        return False
    if any(node.attributes[name].value != neutral for name, neutral in _NEUTRAL.items() if name in node.attributes):
        return False
    (_, heads, _, size), (_, key_heads, _, _) = (value.shape for value in operands[:2])  # type: ignore[union-attr]
    return heads == key_heads and isinstance(size, int)


def _take_apart(graph: ir.Graph, node: ir.Node, chunks: int) -> None:
    q, k, v = node.inputs[:3]
    assert q is not None and k is not None and v is not None and q.shape is not None  # _matches has seen them
    add = adder(graph, str(node.name), node)
    dtype, given = dtype_of(q), node.attributes.get("scale")
    scale = given.as_float() if given is not None else 1 / math.sqrt(int(q.shape[3]))  # type: ignore[arg-type]
    zero = scalar(graph, f"{node.name}.nothing", dtype.numpy().type(0))
    factor = scalar(graph, f"{node.name}.scale", dtype.numpy().type(scale))
    queries = add("Mul", q, factor, label="queries", dtype=dtype, like=q)
    keys = add("Transpose", k, label="keys", dtype=dtype, perm=[0, 1, 3, 2])
    results: list[ir.Value] = []
    for index, part in enumerate(_split(graph, add, queries, chunks)):
        if results:
            part = _behind(graph, add, part, results[-1], zero, index)
        scores = add("MatMul", part, keys, label=f"{index}.scores", dtype=dtype)
        if dtype != ir.DataType.FLOAT:
            scores = add("Cast", scores, label=f"{index}.float32", to=ir.DataType.FLOAT.value)
        weights = add("Softmax", scores, label=f"{index}.weights", axis=-1)
        if dtype != ir.DataType.FLOAT:
            weights = add("Cast", weights, label=f"{index}.base", dtype=dtype, to=dtype.value)
        results.append(add("MatMul", weights, v, label=f"{index}.result", dtype=dtype))
    whole = add("Concat", *results, label="whole", dtype=dtype, like=node.outputs[0], axis=_ROWS)
    ir.convenience.replace_all_uses_with(node.outputs[0], whole, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _split(graph: ir.Graph, add: Add, queries: ir.Value, chunks: int) -> Iterator[ir.Value]:
    """Chunks of ceil(L / chunks) queries. (Split has sizes for each part, and ONNX Runtime refuses empty ones.)"""
    integer = ir.DataType.INT64
    rows = add("Shape", queries, label="rows", dtype=integer, start=_ROWS, end=_ROWS + 1)
    rounded = add("Add", rows, integers(graph, f"number_{chunks - 1}", [chunks - 1]), label="rounded", dtype=integer)
    step = add("Div", rounded, integers(graph, f"number_{chunks}", [chunks]), label="step", dtype=integer)
    start = integers(graph, "number_0", [0])
    for index in range(chunks):
        number = integers(graph, f"number_{index + 1}", [index + 1])
        end = add("Mul", step, number, label=f"{index}.end", dtype=integer)
        yield add("Slice", queries, start, end, axis(graph, _ROWS), label=f"{index}.queries", dtype=dtype_of(queries))
        start = end


def _behind(graph: ir.Graph, add: Add, part: ir.Value, before: ir.Value, zero: ir.Value, index: int) -> ir.Value:
    """Queries that wait for the result of the chunk before: they get its first row times zero."""
    dtype = dtype_of(part)
    row = add("Slice", before, axis(graph, 0), axis(graph, 1), axis(graph, _ROWS), label=f"{index}.row", dtype=dtype)
    nothing = add("Mul", row, zero, label=f"{index}.nothing", dtype=dtype)
    return add("Add", part, nothing, label=f"{index}.behind", dtype=dtype)
