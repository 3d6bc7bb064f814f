"""Device memory that an engine needs beside its weights, counted from its graph, to judge what the builder reports.

The builder's arithmetic can overflow: TensorRT-RTX 1.7.1 reports 344 MB for an attention over 65,536 positions whose
scores alone take 17 GB, and 7.5 GB for a VAE that needs 20. The runtime reserves what is reported, so such an engine
writes past its memory.

The count takes kernels as TensorRT makes them: a product (convolution, matrix product) reads and writes memory, with
the cast behind it; norms and softmax read memory, since they need whole rows before they can begin; everything else
runs inside of those. What is kept lives until its last reader, in the order of the graph. The builder may order the
work otherwise and share memory less well or better, so the count is a measure, no bound.
"""

from collections.abc import Mapping, Sequence
from math import prod

import onnx_ir as ir
from onnxscript.optimizer import optimize_ir

from export.graph.passes.attention_kernels import has_fused_kernel
from export.graph.passes.editing import cast_behind

PRODUCTS = ("Conv", "MatMul", "Gemm")
_REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceSum")
_WHOLE_ROWS = ("GroupNormalization", "InstanceNormalization", "RMSNormalization", "Softmax", *_REDUCTIONS)
_LEAST = 0.6
"""Part of the count that a report may be; see `overflow`."""


def overflow(stage: str, reported: Sequence[int], counted: Sequence[int]) -> list[str]:
    """A sentence for each profile whose reported memory cannot be right.

    TensorRT-RTX 1.7.1 reported 0.83 to 1.42 times the count for graphs of the VAE of the released size, for up to 1024
    and 2048 pixels; where its arithmetic had overflowed 0.43 times for a whole decoding.
    """
    return [
        f"the builder reports {told / 1e6:,.0f} MB of scratch memory for profile {index} of {stage}, and its graph "
        f"needs about {needed / 1e6:,.0f} MB: the builder's arithmetic has overflowed; build for smaller pictures"
        for index, (told, needed) in enumerate(zip(reported, counted, strict=True))
        if 0 < told < _LEAST * needed  # 0: it reports nothing
    ]


def counted_bytes(model: ir.Model, inputs: Mapping[str, Sequence[int]]) -> int:
    """The largest number of bytes that are kept at one time for inputs of these shapes, inputs and outputs aside.

    What has no known shape counts nothing.
    """
    graph = _shaped(model, inputs).graph
    order = {node: index for index, node in enumerate(graph)}
    sizes = [0] * (len(order) + 1)  # what each node adds to the node before it
    for node in graph:
        start = order[node]
        for value in node.outputs:
            if _is_kept(value):
                size = _bytes(value)
                sizes[start] += size
                sizes[_last_reader(value, order) + 1] -= size
        if node.op_type == "Attention" and not has_fused_kernel(node):
            sizes[start] += _scores(node)
            sizes[start + 1] -= _scores(node)
    highest = current = 0
    for change in sizes:
        current += change
        highest = max(highest, current)
    return highest


def _shaped(model: ir.Model, inputs: Mapping[str, Sequence[int]]) -> ir.Model:
    """A copy without weights whose values have shapes in numbers."""
    copy = model.clone()
    graph = copy.graph
    sizes: dict[str, int] = {}
    for value in graph.inputs:
        assert value.shape is not None  # a traced graph's inputs have shapes
        named = zip(value.shape, inputs[str(value.name)], strict=True)
        sizes |= {str(dim.value): size for dim, size in named if isinstance(dim, ir.SymbolicDim)}
    for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
        if value.shape is not None:
            value.shape = value.shape.evaluate(sizes)
    for value in list(graph.initializers.values()):
        if value.dtype != ir.DataType.INT64:  # which say shapes; the others are weights
            del graph.initializers[str(value.name)]
            value.const_value = None
            graph.inputs.append(value)
    optimize_ir(copy, num_iterations=1)  # the values that passes have put in have no shapes yet
    return copy


def _is_kept(value: ir.Value) -> bool:
    """Whether a value is in memory between two kernels."""
    if value.is_graph_output():
        return False
    producer = value.producer()
    if producer is not None and producer.op_type in PRODUCTS:
        return cast_behind(value) is None
    if producer is not None and producer.op_type in _REDUCTIONS:
        return True
    source = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else None
    maker = source.producer() if source is not None else None
    if maker is not None and maker.op_type in PRODUCTS and source is not None and cast_behind(source) is producer:
        return True
    return any(use.node.op_type in (*PRODUCTS, *_WHOLE_ROWS) for use in value.uses())


def _last_reader(value: ir.Value, order: Mapping[ir.Node, int]) -> int:
    """Place of the last node that needs a value, itself or through values that are not kept."""
    producer = value.producer()
    last = order[producer] if producer is not None else 0
    for use in value.uses():
        last = max(last, order[use.node])
        if use.node.op_type not in PRODUCTS:
            last = max([last, *(_last_reader(v, order) for v in use.node.outputs if not _is_kept(v))])
    return last


def _bytes(value: ir.Value) -> int:
    sizes = value.shape.numpy() if value.shape is not None and value.shape.is_static() else (0,)
    return int(prod(sizes) * (value.dtype.itemsize if value.dtype is not None else 0))


def _scores(attention: ir.Node) -> int:
    """Bytes of an attention that is taken apart: its scores, and the softmax of them."""
    q, k = attention.inputs[:2]
    if q is None or k is None or k.shape is None or not k.shape.is_static():
        return 0
    *_, keys, size = k.shape.numpy()
    return 2 * _bytes(q) // size * keys
