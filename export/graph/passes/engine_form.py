"""Shape a graph for TensorRT, so that its compiler needs fewer kernels and never writes a weight back in 16 bits.

The arithmetic stays that of ONNX Runtime's form up to the rounding of one product. What each change gave, in kernels of
a block at the real width (4608, 18 heads of 256, sm89 and sm120, TensorRT-RTX 1.7.1;
``tests/export/engine/test_plan.py`` holds the result):

| change | kernels per block |
|---|---|
| none | 14, and 4 pairs of stream signals |
| `scale_after_products`: the row scales behind the products | 13; the products write 2 bytes a value instead of 4 |
| queries and keys normed and rotated as one tensor (`model.transformer`) | 12 and a signal pair fewer |
| `join_products`: w1 and w3 as one product (sm120 does not do it by itself, sm89 does) | 11 |
| `sum_single_rows`: no dequantised copies of the time's weights, 642 MB a step at full size | 11, no signals left |

and one kernel that the compiler splits off between blocks, so 12. The floor by counting is 9: four products, the
attention, and one element-wise kernel between each two of them.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir

from export.graph.passes.qdq import scalar
from model.checkpoint.directory import Known, Sources
from model.checkpoint.tensor_files import Joined

JOINED = {
    "feed_forward.w13": ("feed_forward.w1", "feed_forward.w3"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
}
"""Products of one input, in the transformers and in the text encoder, and the name of the product they become."""
SINGLE_ROW = ("t_embedding.mlp_in", "t_embedding.mlp_out", "adaln_proj", "adaln_modulation")
"""Products whose left side is one row for each picture: they depend on the time only."""
LARGEST_FUSED_HEAD = 256
"""Head size up to which TensorRT has a fused attention kernel; measured with TensorRT-RTX 1.7.1, where 264 has none."""


def join_products(model: ir.Model, sources: Sources) -> dict[str, tuple[str, ...]]:
    """Make one product of each pair in `JOINED`, whose weights get one name and one source.

    The graph must have been traced and not yet been quantized. Adds the sources of the new weights to `sources`.

    Returns:
        The weights that each new one is made of.
    """
    joined = {}
    for name, weights in groups(list(model.graph.initializers)):
        _join(model.graph, [model.graph.initializers[weight] for weight in weights], name)
        found = [sources[weight] for weight in weights]
        assert not any(isinstance(source, Known) for source in found)
        sources[name] = Joined(tuple(found))  # type: ignore[arg-type]
        joined[name] = tuple(weights)
    return joined


def groups(names: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Name of each joined weight, and the weights among `names` that it is made of."""
    names = list(names)
    for whole, parts in JOINED.items():
        for name in names:
            if name.endswith(f".{parts[0]}.weight"):
                prefix = name.removesuffix(f"{parts[0]}.weight")
                yield f"{prefix}{whole}.weight", [f"{prefix}{part}.weight" for part in parts]


def scale_after_products(model: ir.Model) -> None:
    """Multiply the results of W8A8 products by the row scales, instead of the codes.

    x W^T with W = scale * codes is scale * (x codes^T), and TensorRT applies row scales behind the product in any case,
    but then has it write float32 for them.
    """
    for node, product in _quantized_products(model.graph):
        left = product.inputs[0]
        if left is None or (quantized := left.producer()) is None or quantized.op_type != "DequantizeLinear":
            continue
        codes, scale = node.inputs[:2]
        one = _unit(model.graph)
        attributes = {name: value for name, value in node.attributes.items() if name != "axis"}
        plain = ir.Node("", "DequantizeLinear", [codes, one], attributes.values(), name=f"{node.name}_codes")
        _describe(plain.outputs[0], f"{node.name}_codes", node.outputs[0])
        last = _behind_cast(product)
        scaled = ir.node("Mul", [last.outputs[0], scale], name=f"{node.name}_scaled")
        _describe(scaled.outputs[0], f"{node.name}_scaled", last.outputs[0])
        model.graph.insert_before(node, plain)
        ir.convenience.replace_all_uses_with(node.outputs[0], plain.outputs[0])
        model.graph.remove(node, safe=True)
        ir.convenience.replace_all_uses_with(last.outputs[0], scaled.outputs[0])
        scaled.replace_input_with(0, last.outputs[0])
        model.graph.insert_after(last, scaled)


def sum_single_rows(model: ir.Model) -> None:
    """Write quantized products of a single row as products and sums of their elements, in float32.

    TensorRT reads the codes inside such a kernel. Of a matrix product of one row it first makes a 16-bit copy of the
    weights, at every step, which moves five times the bytes.
    """
    for node, product in _quantized_products(model.graph):
        if not any(f"{name}.weight" in (node.name or "") for name in SINGLE_ROW):
            continue
        graph, name, x = model.graph, node.name, product.inputs[0]
        assert x is not None
        base = product.outputs[0].dtype
        assert base is not None
        weight = ir.node("DequantizeLinear", node.inputs, attributes={"axis": 0}, name=f"{name}_rows")
        weight.outputs[0].name, weight.outputs[0].type = f"{name}_rows", ir.TensorType(ir.DataType.FLOAT)
        wide = ir.node("Cast", [x], attributes={"to": ir.DataType.FLOAT.value}, name=f"{name}_x")
        row = ir.node("Unsqueeze", [wide.outputs[0], _axis(graph, -2)], name=f"{name}_row")
        terms = ir.node("Mul", [row.outputs[0], weight.outputs[0]], name=f"{name}_terms")
        last = _axis(graph, -1)
        total = ir.node("ReduceSum", [terms.outputs[0], last], attributes={"keepdims": 0}, name=f"{name}_sum")
        result = ir.node("Cast", [total.outputs[0]], attributes={"to": base.value}, name=f"{name}_result")
        nodes = [weight, wide, row, terms, total, result]
        if product.op_type == "Gemm" and len(product.inputs) > 2:  # with a bias
            nodes.append(ir.node("Add", [result.outputs[0], product.inputs[2]], name=f"{name}_biased"))
        for new in nodes[1:]:
            new.outputs[0].name = new.name
        _describe(nodes[-1].outputs[0], f"{nodes[-1].name}", product.outputs[0])
        graph.insert_before(product, nodes)
        ir.convenience.replace_all_uses_with(product.outputs[0], nodes[-1].outputs[0])
        _remove(graph, product)


def allow_decomposition(model: ir.Model, stage: str) -> None:
    """Let TensorRT take attention apart that it has no fused kernel for: the VAE's, one head of 512 or in float32.

    Raises:
        RuntimeError: another stage has such heads. Its attention must be a fused kernel, and TensorRT's own error does
            not name the layer.
    """
    for node in model.graph:
        if node.op_type == "Attention" and node.inputs[0] is not None and node.inputs[0].shape is not None:
            size = node.inputs[0].shape[3]
            # Of a VAE in float32, which it is in bundles of float16, also smaller heads have none.
            wide = stage.startswith("vae_") and node.inputs[0].dtype == ir.DataType.FLOAT
            if not isinstance(size, int) or (size <= LARGEST_FUSED_HEAD and not wide):
                continue
            if not stage.startswith("vae_"):
                raise RuntimeError(
                    f"{stage}: the attention {node.name} has heads of {size}, and TensorRT has fused kernels for up to "
                    f"{LARGEST_FUSED_HEAD}"
                )
            node.attributes["TRT_decomposable"] = ir.AttrInt64("TRT_decomposable", 1)


def reverse_shared_keys(model: ir.Model) -> None:
    """Let an attention read keys and values backwards where an earlier one reads the same ones.

    A tile and its thumbnail look at the same keys. TensorRT-RTX 1.7.1 crashes on such a pair of attentions, taken apart
    or not; in another order the keys are other tensors to it, and the result is the same up to rounding.
    """
    seen: set[ir.Value | None] = set()
    for node in list(model.graph):
        if node.op_type != "Attention":
            continue
        if node.inputs[1] in seen:
            for place in (1, 2):
                _reverse_rows(model.graph, node, place)
        seen.add(node.inputs[1])


def _reverse_rows(graph: ir.Graph, attention: ir.Node, place: int) -> None:
    """Reverse an input (B, heads, T, head size) of an attention along T."""
    rows = attention.inputs[place]
    assert rows is not None
    start, end, axis = _axis(graph, -1), _constant(graph, "before_first", np.array([-(2**62)])), _axis(graph, 2)
    turned = ir.node("Slice", [rows, start, end, axis, start], name=f"{attention.name}_reversed_{place}")
    _describe(turned.outputs[0], str(turned.name), rows)
    graph.insert_before(attention, turned)
    attention.replace_input_with(place, turned.outputs[0])


def _join(graph: ir.Graph, weights: list[ir.Value], name: str) -> None:
    transposes = [weight.uses()[0].node for weight in weights]
    products = [transpose.outputs[0].uses()[0].node for transpose in transposes]
    assert {node.op_type for node in transposes} == {"Transpose"} and {node.op_type for node in products} == {"MatMul"}
    lefts = {product.inputs[0] for product in products}
    assert len(lefts) == 1, f"the parts of {name} do not share their input"
    sizes = [int(weight.shape[0]) for weight in weights]  # type: ignore[index]
    whole = ir.Value(name=name, type=weights[0].type, shape=ir.Shape([sum(sizes), weights[0].shape[1]]))  # type: ignore[index]
    graph.initializers[name] = whole
    transpose = ir.node("Transpose", [whole], attributes={"perm": [1, 0]}, name=f"{name}_transposed")
    product = ir.node("MatMul", [lefts.pop(), transpose.outputs[0]], name=f"{name}_product")
    for node in (transpose, product):
        node.outputs[0].name, node.outputs[0].type = node.name, weights[0].type
    product.outputs[0].shape = ir.Shape([*products[0].outputs[0].shape[:-1], sum(sizes)])  # type: ignore[index]
    graph.insert_before(products[0], [transpose, product])
    last, ends = product, products
    if all(_behind_cast(old) is not old for old in products):
        # One cast to float32 in front of the split instead of one behind each part: row scales come between them.
        ends = [_behind_cast(old) for old in products]
        last = ir.node("Cast", [product.outputs[0]], attributes={"to": ir.DataType.FLOAT.value}, name=f"{name}_float32")
        _describe(last.outputs[0], f"{name}_float32", ends[0].outputs[0])
        last.outputs[0].shape = product.outputs[0].shape
        graph.insert_before(products[0], last)
    split = ir.node(
        "Split",
        [last.outputs[0], _constant(graph, f"split_{'_'.join(map(str, sizes))}", np.array(sizes))],
        attributes={"axis": -1},
        num_outputs=len(sizes),
        name=f"{name}_parts",
    )
    graph.insert_before(products[0], split)
    for product, end, new in zip(products, ends, split.outputs, strict=True):
        _describe(new, f"{end.outputs[0].name}_part", end.outputs[0])
        ir.convenience.replace_all_uses_with(end.outputs[0], new)
        if end is not product:
            graph.remove(end, safe=True)
        _remove(graph, product)
    for weight in weights:
        del graph.initializers[str(weight.name)]


def _quantized_products(graph: ir.Graph) -> list[tuple[ir.Node, ir.Node]]:
    """(DequantizeLinear of a weight, the product that reads it)."""
    pairs = []
    for node in graph:
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].is_initializer():
            reader = node.outputs[0].uses()[0].node
            if reader.op_type == "Transpose":
                reader = reader.outputs[0].uses()[0].node
            pairs.append((node, reader))
    return pairs


def _behind_cast(product: ir.Node) -> ir.Node:
    """The node whose result is the product's in float32: a split or the cast behind it, or the product itself."""
    uses = [use.node for use in product.outputs[0].uses()]
    return uses[0] if len(uses) == 1 and uses[0].op_type == "Cast" else product


def _remove(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node, and those before it that nothing else reads."""
    inputs = [value for value in node.inputs if value is not None]
    graph.remove(node, safe=True)
    for value in inputs:
        producer = value.producer()
        if producer is not None and producer.op_type in ("Transpose", "DequantizeLinear") and not value.uses():
            _remove(graph, producer)


def _describe(value: ir.Value, name: str, like: ir.Value) -> None:
    value.name, value.type, value.shape = name, like.type, like.shape


def _unit(graph: ir.Graph) -> ir.Value:
    return graph.initializers.get("unit_scale") or scalar(graph, "unit_scale", np.float32(1))


def _axis(graph: ir.Graph, axis: int) -> ir.Value:
    return _constant(graph, f"axis_{axis}", np.array([axis]))


def _constant(graph: ir.Graph, name: str, numbers: np.ndarray) -> ir.Value:
    if name not in graph.initializers:
        value = ir.Value(name=name, const_value=ir.Tensor(numbers.astype(np.int64), name=name))
        value.type, value.shape = ir.TensorType(ir.DataType.INT64), ir.Shape(numbers.shape)
        graph.initializers[name] = value
    return graph.initializers[name]
