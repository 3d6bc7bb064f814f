"""Graphs of a few nodes, built by hand, and what they compute."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

FLOAT = ir.DataType.FLOAT


class SmallGraph:
    """A graph under construction: values come back, and `model` puts the nodes together in their order."""

    def __init__(self):
        self.inputs, self.nodes, self.parameters = [], [], {}

    def input(self, name, *shape, dtype=FLOAT):
        self.inputs.append(ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape)))
        return self.inputs[-1]

    def parameter(self, name, *shape, dtype=FLOAT):
        """An initializer whose value is not known yet, as a traced graph has them."""
        self.parameters[name] = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        return self.parameters[name]

    def constant(self, name, array):
        value = self.parameter(name, *array.shape, dtype=ir.DataType.from_numpy(array.dtype))
        value.const_value = ir.Tensor(array, name=name)
        return value

    def add(self, operator, *inputs, name, shape=None, dtype=FLOAT, **attributes):
        """The output of a new node; it has the node's name."""
        node = ir.node(operator, inputs, attributes=attributes, name=name)
        output = node.outputs[0]
        output.name, output.type = name, ir.TensorType(dtype)
        output.shape = ir.Shape(shape) if shape is not None else None
        self.nodes.append(node)
        return output

    def model(self, *outputs):
        graph = ir.Graph(
            self.inputs,
            outputs,
            nodes=self.nodes,
            initializers=list(self.parameters.values()),
            opset_imports={"": 23},
            name="small",
        )
        return ir.Model(graph, ir_version=11)


def operators(model):
    """The operators of a model, in their order."""
    return [node.op_type for node in model.graph]


def picture(model):
    """All that a pass may change, as plain values: equal pictures, equal graphs."""
    nodes = [
        (
            node.domain,
            node.op_type,
            node.name,
            [value.name if value is not None else None for value in node.inputs],
            [output.name for output in node.outputs],
            sorted((name, str(attribute.value)) for name, attribute in node.attributes.items()),
        )
        for node in model.graph
    ]
    ends = [[value.name for value in values] for values in (model.graph.inputs, model.graph.outputs)]
    return nodes, list(model.graph.initializers), ends


def run(model, feeds, parameters: Mapping[str, np.ndarray] | None = None, new_ops=()):
    """The outputs of a model by ONNX's reference implementation; `parameters` without values are given here."""
    copy = model.clone()
    for name, value in copy.graph.initializers.items():
        if value.const_value is None:
            value.const_value = ir.Tensor((parameters or {})[name], name=name)
    return ReferenceEvaluator(ir.to_proto(copy), new_ops=list(new_ops)).run(None, feeds)


def whole_numbers(seed, *shape, largest=7):
    """Float32 whole numbers up to `largest` in magnitude: sums of their products are exact in any order."""
    return np.random.default_rng(seed).integers(-largest, largest + 1, shape).astype(np.float32)
