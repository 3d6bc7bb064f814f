"""What several passes need: small constants, and the reading and removing of nodes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def scalar(graph: ir.Graph, name: str, number: np.generic) -> ir.Value:
    """A new initializer without dimensions."""
    return _initializer(graph, name, np.asarray(number))


def integers(graph: ir.Graph, name: str, numbers: list[int]) -> ir.Value:
    """The initializer `name` of one dimension, int64; made unless the graph has it."""
    return graph.initializers.get(name) or _initializer(graph, name, np.array(numbers, np.int64))


def axis(graph: ir.Graph, number: int) -> ir.Value:
    """The initializer that names an axis to an operator."""
    return integers(graph, f"axis_{number}", [number])


def filled(graph: ir.Graph, length: int, number: float) -> ir.Value:
    """An initializer (length,), float32, of one number; made unless the graph has it."""
    name = f"{number:g}_{length}_times"
    return graph.initializers.get(name) or _initializer(graph, name, np.full(length, number, np.float32))


def _initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
    value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
    graph.initializers[name] = value
    return value


def constant(graph: ir.Graph, name: str, number: float) -> ir.Value:
    """The float32 initializer `name` without dimensions; made unless the graph has it."""
    return graph.initializers.get(name) or scalar(graph, name, np.float32(number))


def adder(graph: ir.Graph, prefix: str, before: ir.Node) -> Callable[..., ir.Value]:
    """A function that adds a node in front of `before` and returns its output.

    It takes the operator, its inputs and attributes, and ``label``, the part of the names behind `prefix`. The output
    has the type ``dtype``, float32 unless given, and the shape of the value ``like``, if given.
    """

    def add(
        operator: str,
        *inputs: ir.Value,
        label: str,
        dtype: ir.DataType = ir.DataType.FLOAT,
        like: ir.Value | None = None,
        **attributes: Any,
    ) -> ir.Value:
        node = ir.node(operator, inputs, attributes=attributes, name=f"{prefix}.{label}")
        output = node.outputs[0]
        output.name, output.type = node.name, ir.TensorType(dtype)
        output.shape = like.shape if like is not None else None
        graph.insert_before(before, node)
        return output

    return add


def describe(value: ir.Value, name: str, like: ir.Value) -> None:
    """Give `value` a name, and the type and shape of another."""
    value.name, value.type, value.shape = name, like.type, like.shape


def dtype_of(value: ir.Value) -> ir.DataType:
    """The type of a value that is known to have one."""
    assert value.dtype is not None
    return value.dtype


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node that reads `value`, unless several do or it is an output of the graph."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def cast_behind(value: ir.Value) -> ir.Node | None:
    """The cast to float32 that is the only reader of `value`."""
    node = only_reader(value)
    if node is not None and node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
        return node
    return None


def transposes(node: ir.Node) -> bool:
    """Whether a node swaps the two axes of a matrix."""
    order = node.attributes.get("perm")
    return node.op_type == "Transpose" and order is not None and list(order.as_ints()) == [1, 0]


def coded_products(graph: ir.Graph) -> list[tuple[ir.Node, ir.Node]]:
    """(DequantizeLinear of a weight (out, in) with row scales, the product x W^T that alone reads it)."""
    pairs = []
    for node in graph:
        if node.op_type != "DequantizeLinear" or not _has_row_scales(node):
            continue
        weight, is_transposed = node.outputs[0], False
        product = only_reader(weight)
        if product is not None and transposes(product):
            weight, is_transposed = product.outputs[0], True
            product = only_reader(weight)
        if product is not None and _multiplies(product, is_transposed) and product.inputs[1] is weight:
            pairs.append((node, product))
    return pairs


def _has_row_scales(node: ir.Node) -> bool:
    codes, scale, rows = node.inputs[0], node.inputs[1], node.attributes.get("axis")
    if codes is None or scale is None or scale.shape is None or not codes.is_initializer():
        return False
    return len(scale.shape) == 1 and rows is not None and rows.as_int() == 0


def _multiplies(product: ir.Node, is_transposed: bool) -> bool:
    """Whether a node is x W^T (+ b), given W^T or, as a Gemm may be, W."""
    if product.op_type == "MatMul":
        return is_transposed
    attributes = product.attributes
    plain = all(attributes[name].as_float() == 1 for name in ("alpha", "beta") if name in attributes)
    left, right = (attributes[name].as_int() if name in attributes else 0 for name in ("transA", "transB"))
    return product.op_type == "Gemm" and plain and not left and bool(right) != is_transposed


def remove_unread(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node whose results nobody reads, and what then nobody reads of what was in front of it."""
    inputs = {value for value in node.inputs if value is not None}
    graph.remove(node, safe=True)
    for value in inputs:
        producer = value.producer()
        if value.is_initializer() and not value.uses():
            del graph.initializers[str(value.name)]
        elif producer is not None and producer.graph is graph and not _is_read(producer):  # it may be gone already
            remove_unread(graph, producer)


def _is_read(node: ir.Node) -> bool:
    return any(value.uses() or value.is_graph_output() for value in node.outputs)
