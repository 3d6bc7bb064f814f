"""Make one product of several with the same input, by the weights one after another.

Matches the products of `JOINED` in a graph that is traced and not yet quantized:

    x -> MatMul(Transpose(w1)) [-> Cast to float32]          x -> MatMul(Transpose(w13)) [-> Cast to float32] -> Split
    x -> MatMul(Transpose(w3)) [-> Cast to float32]

with one cast to float32 in front of the split instead of one behind each part, since row scales come between them
(`export.graph.passes.row_scales`). Every value is the same as before. Made for sm120, where TensorRT does not join w1
and w3 by itself, as it does on sm89: 12 kernels in a block before, 11 after.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from export.graph.passes.editing import cast_behind, describe, integers, only_reader, remove_unread, transposes
from model.checkpoint.sources import Joined, Sources

JOINED = {
    "feed_forward.w13": ("feed_forward.w1", "feed_forward.w3"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
}
"""Products of one input, in the transformers and in the text encoder, and the name of the product they become."""


@dataclass(frozen=True)
class _Product:
    """One of the products that are joined."""

    weight: ir.Value
    rows: int
    """First dimension of the weight: columns of the result."""
    columns: int
    """Second dimension of the weight."""
    matmul: ir.Node
    last: ir.Node
    """The cast to float32 behind it, or itself."""


def join_products(model: ir.Model, sources: Sources) -> dict[str, tuple[str, ...]]:
    """Make one product of each group in `JOINED`, and add the sources of the new weights to `sources`.

    A group is left alone if one of its weights is missing or has another reader, if their products differ in input or
    type, or if one of them is a result of the graph.

    Returns:
        The weights that each new one is made of, in the order of its rows; empty if the graph has not changed.
    """
    joined = {}
    for name, weights in groups(list(model.graph.initializers)):
        products = [_product(model.graph, weight) for weight in weights]
        found = [product for product in products if product is not None]
        if len(found) == len(weights) and _belong_together(found):
            _join(model.graph, found, name)
            sources[name] = Joined(tuple(sources[weight] for weight in weights))
            joined[name] = tuple(weights)
    return joined


def groups(names: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Name of each joined weight, and those that it is made of; `names` holds at least the first of them."""
    names = list(names)
    for whole, parts in JOINED.items():
        for name in names:
            if name.endswith(f".{parts[0]}.weight"):
                prefix = name.removesuffix(f"{parts[0]}.weight")
                yield f"{prefix}{whole}.weight", [f"{prefix}{part}.weight" for part in parts]


def _product(graph: ir.Graph, name: str) -> _Product | None:
    """The product x W^T of a weight, if that is all it is for, and no result of the graph."""
    weight = graph.initializers.get(name)
    transpose = only_reader(weight) if weight is not None else None
    if weight is None or weight.shape is None or transpose is None or not transposes(transpose):
        return None
    rows, columns = weight.shape
    matmul = only_reader(transpose.outputs[0])
    if not isinstance(rows, int) or not isinstance(columns, int) or matmul is None or matmul.op_type != "MatMul":
        return None
    last = cast_behind(matmul.outputs[0]) or matmul
    is_right = matmul.inputs[1] is transpose.outputs[0]
    if not is_right or matmul.outputs[0].shape is None or last.outputs[0].is_graph_output():
        return None
    return _Product(weight, rows, columns, matmul, last)


def _belong_together(products: list[_Product]) -> bool:
    """Whether products have one input, one type and the same kind of result."""
    kinds = {(p.matmul.inputs[0], p.columns, p.weight.dtype, p.last is p.matmul) for p in products}
    return len(kinds) == 1


def _join(graph: ir.Graph, products: list[_Product], name: str) -> None:
    first = products[0]
    x, sizes, begin = first.matmul.inputs[0], [product.rows for product in products], _earliest(graph, products)
    whole = ir.Value(name=name, type=first.weight.type, shape=ir.Shape([sum(sizes), first.columns]))
    graph.initializers[name] = whole
    transpose = ir.node("Transpose", [whole], attributes={"perm": [1, 0]}, name=f"{name}_transposed")
    product = ir.node("MatMul", [x, transpose.outputs[0]], name=f"{name}_product")
    for node in (transpose, product):
        node.outputs[0].name, node.outputs[0].type = node.name, first.weight.type
    assert first.matmul.outputs[0].shape is not None  # _product has seen it
    product.outputs[0].shape = ir.Shape([*first.matmul.outputs[0].shape[:-1], sum(sizes)])
    graph.insert_before(begin, [transpose, product])
    last = product
    if first.last is not first.matmul:
        last = ir.node("Cast", [product.outputs[0]], attributes={"to": ir.DataType.FLOAT.value}, name=f"{name}_float32")
        describe(last.outputs[0], f"{name}_float32", first.last.outputs[0])
        last.outputs[0].shape = product.outputs[0].shape
        graph.insert_before(begin, last)
    lengths = integers(graph, f"split_{'_'.join(map(str, sizes))}", sizes)
    split = ir.node(
        "Split", [last.outputs[0], lengths], attributes={"axis": -1}, num_outputs=len(sizes), name=f"{name}_parts"
    )
    graph.insert_before(begin, split)
    for old, part in zip(products, split.outputs, strict=True):
        _replace(graph, old, part)


def _replace(graph: ir.Graph, old: _Product, part: ir.Value) -> None:
    """Put a part of the joined product in the place of one of those that it was made of."""
    describe(part, f"{old.last.outputs[0].name}_part", old.last.outputs[0])
    ir.convenience.replace_all_uses_with(old.last.outputs[0], part)
    if old.last is not old.matmul:
        graph.remove(old.last, safe=True)
    remove_unread(graph, old.matmul)


def _earliest(graph: ir.Graph, products: list[_Product]) -> ir.Node:
    """The product that is computed first; what reads the others' results stands behind it."""
    nodes = {product.matmul for product in products}
    return next(node for node in graph if node in nodes)
