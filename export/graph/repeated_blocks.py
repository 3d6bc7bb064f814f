"""A stack of equal blocks is traced once, and the other blocks are copies of that graph with weights of their own.

Tracing costs the same for every block, and a block of the transformers or of the text encoder differs from the next in
nothing but its weights: the 36 layers of the text encoder took 20 of a build's 35 seconds. The last block of a stack
stays in the surrounding graph, because the transformer calls it in a way of its own.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch
from onnx_ir.passes.common import CommonSubexpressionEliminationPass
from torch import Tensor, nn

STACK = "layers"
"""Name of the module lists that are such stacks."""
_DOMAIN, _OPERATOR, _INDEX = "ideogram4", "Block", "index"


@dataclass(frozen=True)
class Stack:
    """The blocks of a module that are copies of one another."""

    name: str
    """Of the module list, such as ``encoder.layers``; names of parameters begin with it and the block's number."""
    blocks: nn.ModuleList

    @property
    def first(self) -> nn.Module:
        return self.blocks[0]

    @property
    def copied(self) -> range:
        """Numbers of the blocks that are copies: all but the last."""
        return range(len(self.blocks) - 1)


def find_stack(module: nn.Module) -> Stack | None:
    """The stack of a module, if it has one of three blocks or more that are alike."""
    for name, part in module.named_modules():
        if name.rpartition(".")[2] == STACK and isinstance(part, nn.ModuleList) and len(part) > 2:
            kinds = {(type(block), _parameters(block)) for block in part}
            return Stack(name, part) if len(kinds) == 1 else None
    return None


def _parameters(block: nn.Module) -> tuple[tuple[str, torch.Size, torch.dtype], ...]:
    return tuple((name, p.shape, p.dtype) for name, p in block.named_parameters())


def call_of_first(stack: Stack, module: nn.Module, examples: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """What the first block is called with when the module is called with `examples`."""
    calls: list[tuple[Tensor, ...]] = []
    hook = stack.first.register_forward_pre_hook(lambda _, args: calls.append(args))
    try:
        module(**examples)
    finally:
        hook.remove()
    return calls[0]


@contextlib.contextmanager
def stand_ins(stack: Stack) -> Iterator[None]:
    """While the context is open, every block but the last is one node of an operator that does not exist."""
    blocks = list(stack.blocks)
    try:
        for index in stack.copied:
            stack.blocks[index] = _StandIn(index)
        yield
    finally:
        for index, block in enumerate(blocks):
            stack.blocks[index] = block


class _StandIn(nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, hidden: Tensor, *others: Tensor) -> Tensor:
        operator = f"{_DOMAIN}::{_OPERATOR}"
        made = torch.onnx.ops.symbolic(
            operator, (hidden, *others), {_INDEX: self.index}, dtype=hidden.dtype, shape=hidden.shape, version=1
        )
        return made.to(hidden.device)  # PyTorch takes the results of such operators to be on the CPU


def dynamic_sizes(model: ir.Model, call: tuple[Tensor, ...], names: Mapping[int, str]) -> tuple[dict[int, str], ...]:
    """For each input of a block its dimensions that may vary, by the name that `names` has for a size in `call`."""
    node = next(node for node in model.graph if node.domain == _DOMAIN)
    found = []
    for value, example in zip(node.inputs, call, strict=True):
        assert value is not None and value.shape is not None
        varying = [axis for axis, size in enumerate(value.shape) if not isinstance(size, int)]
        found.append({axis: names[example.shape[axis]] for axis in varying})
    return tuple(found)


def put_in(model: ir.Model, block: ir.Model, stack: Stack) -> None:
    """Replace the stand-ins of `model` by copies of the graph of a block, whose parameters become initializers."""
    constants: dict[str, ir.Value] = {}
    for node in [node for node in model.graph if node.domain == _DOMAIN]:
        prefix = f"{stack.name}.{node.attributes[_INDEX].as_int()}."
        copy = block.graph.clone()
        for inner, outer in zip(copy.inputs, node.inputs, strict=True):
            assert outer is not None
            ir.convenience.replace_all_uses_with(inner, outer)
        _move_initializers(copy, model.graph, stack, prefix, constants)
        result = copy.outputs[0]
        model.graph.insert_before(node, _released_nodes(copy, prefix))
        ir.convenience.replace_all_uses_with(node.outputs[0], result)
        model.graph.remove(node, safe=True)
    model.opset_imports.pop(_DOMAIN)
    CommonSubexpressionEliminationPass()(model)  # what each copy makes of the same inputs


def _move_initializers(
    copy: ir.Graph, graph: ir.Graph, stack: Stack, prefix: str, constants: dict[str, ir.Value]
) -> None:
    """Parameters become the graph's under the block's own `prefix`; of `constants` the first copy's serve all."""
    for name, value in list(copy.initializers.items()):
        copy.initializers.pop(name)
        if name in constants:
            ir.convenience.replace_all_uses_with(value, constants[name])
            continue
        value.name = prefix + name
        if value.const_value is not None:
            value.name = f"{stack.name}.{name}"
            constants[name] = value
        graph.initializers[value.name] = value


def _released_nodes(copy: ir.Graph, prefix: str) -> list[ir.Node]:
    """The nodes of a graph that is given up, with names of their own."""
    copy.outputs.clear()
    nodes = list(copy)
    copy.remove(nodes)
    for node in nodes:
        node.name = prefix + str(node.name)
        for output in node.outputs:
            output.name = prefix + str(output.name)
    return nodes
