"""Let an attention read keys and values backwards where an earlier one reads the same ones.

Matches Attention whose keys (B, heads, T, head size) are those of an Attention before it, and puts a Slice with step -1
along T before its keys and values. A tile and its thumbnail look at the same keys. TensorRT-RTX 1.7.1 crashes on such a
pair of attentions, taken apart or not; in another order the keys are other tensors to it, and the result is the same up
to rounding.

That holds only where every query sees every key: an attention that is causal or has a mask is left alone.
"""

import onnx_ir as ir

from export.graph.passes.editing import axis, describe, integers


def reverse_shared_keys(model: ir.Model) -> bool:
    """Reverse the keys and values of every attention but the first that reads them.

    Returns:
        Whether the graph has changed.
    """
    seen: set[ir.Value] = set()
    found = []
    for node in model.graph:
        if node.op_type != "Attention" or (keys := node.inputs[1]) is None:
            continue
        if keys in seen and _sees_all(node):
            found.append(node)
        seen.add(keys)
    for node in found:
        for place in (1, 2):
            _reverse_rows(model.graph, node, place)
    return bool(found)


def _sees_all(node: ir.Node) -> bool:
    """Whether an attention has four-dimensional operands and nothing that depends on the order of its keys."""
    operands, others = node.inputs[:3], node.inputs[3:]
    causal = node.attributes.get("is_causal")
    whole = all(value is not None and value.shape is not None and len(value.shape) == 4 for value in operands)
    return whole and not any(value is not None for value in others) and (causal is None or not causal.as_int())


def _reverse_rows(graph: ir.Graph, attention: ir.Node, place: int) -> None:
    """Reverse an input (B, heads, T, head size) of an attention along T."""
    rows = attention.inputs[place]
    assert rows is not None  # _sees_all has seen it
    start, end, rows_axis = axis(graph, -1), integers(graph, "before_first", [-(2**62)]), axis(graph, 2)
    turned = ir.node("Slice", [rows, start, end, rows_axis, start], name=f"{attention.name}_reversed_{place}")
    describe(turned.outputs[0], str(turned.name), rows)
    graph.insert_before(attention, turned)
    attention.replace_input_with(place, turned.outputs[0])
