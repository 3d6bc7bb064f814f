"""Write float8 products of a single row as products and sums of their elements, in float32.

Matches the products by the time's weights, whose left side x is one row for each picture, (B, in) or (B, 1, in):

    DequantizeLinear(codes, scale, axis=0) [-> Transpose] -> MatMul(x, .) or Gemm(x, ., bias)
    DequantizeLinear(codes, scale, axis=0) to float32 -> Mul(x) -> ReduceSum -> Cast [-> Add(bias)]

TensorRT reads the codes inside such a kernel. Of a matrix product of one row it first makes a 16-bit copy of the
weights, at every step, which moves five times the bytes: 642 MB a step at full size. The kernels of a block stay 11,
and the last pairs of stream signals go.
"""

import onnx_ir as ir

from export.graph.passes.editing import axis, coded_products, describe, remove_unread

SINGLE_ROW = ("t_embedding.mlp_in", "t_embedding.mlp_out", "adaln_proj", "adaln_modulation")
"""Products whose left side is one row for each picture: they depend on the time only."""


def sum_single_rows(model: ir.Model) -> bool:
    """Take the products of `SINGLE_ROW` apart, unless they have more rows or are results of the graph.

    Returns:
        Whether the graph has changed.
    """
    found = [pair for pair in coded_products(model.graph) if _matches(*pair)]
    for node, product in found:
        _take_apart(model.graph, node, product)
    return bool(found)


def _matches(node: ir.Node, product: ir.Node) -> bool:
    x, result = product.inputs[0], product.outputs[0]
    if not any(f"{name}.weight" in (node.name or "") for name in SINGLE_ROW) or result.is_graph_output():
        return False
    if x is None or x.shape is None or result.dtype is None:
        return False
    return len(x.shape) == 2 or (len(x.shape) == 3 and x.shape[1] == 1)


def _take_apart(graph: ir.Graph, node: ir.Node, product: ir.Node) -> None:
    name, x, result = node.name, product.inputs[0], product.outputs[0]
    assert result.dtype is not None  # _matches has seen it
    wide, base = ir.DataType.FLOAT, result.dtype
    weight = ir.node("DequantizeLinear", node.inputs, attributes={"axis": 0}, name=f"{name}_rows")
    weight.outputs[0].type = ir.TensorType(wide)
    cast = ir.node("Cast", [x], attributes={"to": wide.value}, name=f"{name}_x")
    row = ir.node("Unsqueeze", [cast.outputs[0], axis(graph, -2)], name=f"{name}_row")
    terms = ir.node("Mul", [row.outputs[0], weight.outputs[0]], name=f"{name}_terms")
    last = axis(graph, -1)
    total = ir.node("ReduceSum", [terms.outputs[0], last], attributes={"keepdims": 0}, name=f"{name}_sum")
    narrow = ir.node("Cast", [total.outputs[0]], attributes={"to": base.value}, name=f"{name}_result")
    nodes = [weight, cast, row, terms, total, narrow]
    if len(product.inputs) > 2:  # a Gemm with a bias
        nodes.append(ir.node("Add", [narrow.outputs[0], product.inputs[2]], name=f"{name}_biased"))
    for new in nodes:
        new.outputs[0].name = new.name
    describe(nodes[-1].outputs[0], str(nodes[-1].name), result)
    graph.insert_before(product, nodes)
    ir.convenience.replace_all_uses_with(result, nodes[-1].outputs[0])
    remove_unread(graph, product)
