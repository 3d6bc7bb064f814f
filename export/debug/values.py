"""The values inside of an ONNX graph that can be compared, and the layers that they come from."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from runtime.errors import BundleError

_COMPARED = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.UNDEFINED}
_SCALED = re.compile(r"_token_(\d+_|\.)scaled$")
"""In the names of products by the scale of each token, behind those of its codes; see `export.graph.passes`."""
_CODED = ("QuantizeLinear", "DynamicQuantizeLinear")
"""Their results are codes, which numpy has no type for."""


@dataclass(frozen=True)
class Layer:
    """The node that gives a value."""

    value: str
    """Name of its output, which is the same in each form of a graph."""
    output: str
    """Name of what holds that value: the product behind it where a pass has put its scale there."""
    node: str
    operator: str
    weights: tuple[str, ...]
    """Initializers that it reads, directly or through nodes that read nothing else."""


def read_graph(file: Path) -> onnx.ModelProto:
    """A graph without its weights; BundleError if the file is missing or damaged."""
    if not file.is_file():
        raise BundleError(f"the bundle's file {file} is missing; copy or build the bundle again")
    try:
        return onnx.load(file, load_external_data=False)
    except Exception as error:  # protobuf's errors share no base class with any of Python's but this
        raise BundleError(f"{file} is no ONNX graph ({error}); copy or build the bundle again") from error


def layers_of(model: onnx.ModelProto, weights: Iterable[str] = ()) -> dict[str, Layer]:
    """The layers whose results are floating-point numbers and depend on the graph's inputs, by value, in order.

    `weights`: initializers that the graph has no values of.
    """
    graph = model.graph
    types = {info.name: info.type.tensor_type.elem_type for info in (*graph.value_info, *graph.output)}
    named = {*weights, *(one.name for one in graph.initializer)}
    constants: dict[str, frozenset[str]] = {name: frozenset((name,)) for name in named}
    layers: dict[str, Layer] = {}
    short: dict[str, Layer] = {}
    for node in graph.node:
        read = frozenset().union(*(constants.get(name, frozenset()) for name in node.input))
        if all(name in constants for name in node.input if name):
            constants |= dict.fromkeys(node.output, read)
            continue
        for name in node.output:
            compared = types.get(name, onnx.TensorProto.UNDEFINED) in _COMPARED or name in _outputs(model)
            if types.get(name) == onnx.TensorProto.BFLOAT16:
                short[name] = Layer(name, name, node.name, node.op_type, tuple(sorted(read)))
            elif name and compared and node.op_type not in _CODED:
                layers[name] = Layer(name, name, node.name, node.op_type, tuple(sorted(read)))
        if node.op_type == "Cast" and node.input[0] in short:  # a product in 16 bits, which numpy may not know
            cast = layers.pop(node.output[0], None)
            layers[node.input[0]] = replace(short[node.input[0]], output=node.output[0])
            if cast is not None and cast.value in _outputs(model):
                layers[cast.value] = cast  # the last one, as in every form
        if node.op_type == "Mul" and _SCALED.search(node.name) and node.input[0] in layers:
            product = layers[node.input[0]]
            layers[product.value] = replace(product, output=node.output[0])
            del layers[node.output[0]]
    return layers


def _outputs(model: onnx.ModelProto) -> set[str]:
    return {one.name for one in model.graph.output}
