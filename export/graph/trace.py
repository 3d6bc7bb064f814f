"""PyTorch module to ONNX graph, without its weights.

The module lives on the meta device, so tracing costs neither memory nor arithmetic, whatever the model's size. The
parameters become graph inputs for as long as the optimizer runs, since there is no value to fold, and turn into
initializers without values at the end; `export.graph.weights` gives them their values.
"""

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn

from export.graph import repeated_blocks as blocks
from export.graph.exporter_tables import looked_up_once
from export.graph.records import GraphRecord

OPSET = 23
"""The first opset with Attention and RMSNormalization, and one that TensorRT 11 and TensorRT-RTX 1.7 accept."""

_DTYPES = {"float32": torch.float32, "int64": torch.int64, "uint8": torch.uint8}


def trace(module: nn.Module, record: GraphRecord) -> ir.Model:
    """The ONNX graph of a module on the meta device; every parameter is an initializer without a value."""
    examples, dynamic = _examples(record)
    stack = blocks.find_stack(module)
    if stack is None:
        return _optimize(_export(module, (), examples, dynamic, record.output.name))
    call = blocks.call_of_first(stack, module, examples)
    with blocks.stand_ins(stack):
        model = _optimize(_export(module, (), examples, dynamic, record.output.name))
    names = {size: name for name, size in record.example.items()}
    sizes = blocks.dynamic_sizes(model, call, names)
    block = _optimize(_export(stack.first, call, {}, sizes, "next_hidden"))
    blocks.put_in(model, block, stack)
    return model


def _export(
    module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], dynamic: Any, output: str
) -> ir.Model:
    with _quiet(), _without_collection(), looked_up_once():
        program = torch.onnx.export(
            module,
            args,
            kwargs=kwargs,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            dynamic_shapes=dynamic,
            input_names=list(kwargs) or None,
            output_names=[output],
        )
    return program.model


def _optimize(model: ir.Model) -> ir.Model:
    """Fold and simplify with the parameters out of reach; drop the exporter's notes, which hold local paths."""
    graph = model.graph
    parameters = list(graph.initializers.values())
    graph.initializers.clear()
    for value in parameters:
        value.const_value = None
        graph.inputs.append(value)
    optimize_ir(model, num_iterations=1)
    for value in parameters:
        graph.inputs.remove(value)
        if value.uses():
            graph.initializers[value.name] = value
    ClearMetadataAndDocStringPass()(model)
    model.producer_name, model.producer_version = "ideogram4-trt", None
    return model


def _examples(record: GraphRecord) -> tuple[dict[str, torch.Tensor], dict[str, dict[int, str]]]:
    """Example inputs on the meta device, and which of their dimensions may vary."""
    examples, dynamic = {}, {}
    for spec in record.inputs:
        shape = [record.example[size] if isinstance(size, str) else size for size in spec.shape]
        examples[spec.name] = torch.zeros(shape, dtype=_DTYPES[spec.dtype], device="meta")
        dynamic[spec.name] = {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)}
    return examples, dynamic


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Tracing makes millions of objects that stay; looking for garbage among them takes a seventh of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about its own internals (torchvision, tree specs) from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
