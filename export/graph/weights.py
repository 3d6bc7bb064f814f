"""Give the parameters of a traced graph their values, and write graph and weights.

Values are read from the checkpoint one tensor at a time while the file is written, so the memory needed is that of
the largest tensor in float32, not of the model. Where a parameter's bytes are in the checkpoint just as the graph wants
them, they need not be written at all: a *linked* graph points at the safetensors file by offset and length.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.external_data import convert_tensors_to_external
from onnx_ir.tensor_adapters import TorchTensor

from export.graph.stitched import StitchedTensor, can_stitch
from model.checkpoint.sources import Sources
from model.checkpoint.tensor_files import CODE_TYPE, StoredTensor

_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}
_STORED = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    CODE_TYPE: ir.DataType.FLOAT8E4M3FN,
}
_CAST_TABLES = ir.DataType.BFLOAT16, ir.DataType.FLOAT
"""Types of a stored table and of what a graph makes of its rows."""
_EMBEDDED_BYTES = 1024
"""Smaller tensors stay inside the .onnx file."""
WEIGHTS = "weights"
"""Folder of the weights beside the .onnx files."""


def attach(model: ir.Model, sources: Sources) -> None:
    """Make every parameter of `model` a tensor that is read from its source when it is written."""
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            value.const_value = _lazy(name, value, sources[name].read)


def link(model: ir.Model, sources: Sources, stitch: bool = False) -> None:
    """Make every initializer whose bytes are in the checkpoint a reference to them; before or after `attach`.

    A table that rows are taken from stays in the 16 bits that it is stored in; the rows are cast instead. With `stitch`
    those whose bytes are in several places refer to all of them, which no file format knows; see
    `export.graph.stitched`.
    """
    for name, value in model.graph.initializers.items():
        if stitch and name in sources and len(parts := sources[name].pieces) > 1:
            if value.dtype is not None and value.shape is not None and is_held(parts, value.dtype):
                value.const_value = StitchedTensor(parts, value.dtype, value.shape, name)
            continue
        stored = _stored(name, sources, model.graph.initializers)
        if stored is not None and value.shape == stored.shape and is_linked(stored, value.dtype, _is_table(value)):
            if value.dtype != _STORED[stored.dtype]:
                _cast_rows(model.graph, value)
            value.const_value = ir.ExternalTensor(
                stored.file.name,
                stored.offset,
                stored.nbytes,
                value.dtype,
                shape=ir.Shape(stored.shape),
                name=name,
                base_dir=stored.file.parent,
            )


def is_linked(stored: StoredTensor, dtype: ir.DataType | None, table: bool) -> bool:
    """Whether a linked graph takes an initializer from the tensor that holds it; of a `table`, rows are taken."""
    held = _STORED.get(stored.dtype)
    return held is not None and (held == dtype or (table and (held, dtype) == _CAST_TABLES))


def is_held(parts: Sequence[StoredTensor], dtype: ir.DataType) -> bool:
    """Whether the files hold a parameter as a builder of engines wants it: in one piece, or in pieces to stitch."""
    return bool(parts) and {_STORED.get(part.dtype) for part in parts} == {dtype} and can_stitch(parts)


def _is_table(value: ir.Value) -> bool:
    return bool(value.uses()) and all(use.node.op_type == "Gather" and use.idx == 0 for use in value.uses())


def _cast_rows(graph: ir.Graph, table: ir.Value) -> None:
    """Make the table bfloat16, and what is taken from it float32: the same values."""
    for use in list(table.uses()):
        rows = use.node.outputs[0]
        cast = ir.node("Cast", [rows], attributes={"to": ir.DataType.FLOAT.value}, name=f"{use.node.name}_float32")
        cast.outputs[0].name, cast.outputs[0].type, cast.outputs[0].shape = (
            f"{rows.name}_float32",
            rows.type,
            rows.shape,
        )
        ir.convenience.replace_all_uses_with(rows, cast.outputs[0])
        cast.replace_input_with(0, rows)
        rows.type = ir.TensorType(ir.DataType.BFLOAT16)
        graph.insert_after(use.node, cast)
    table.type = ir.TensorType(ir.DataType.BFLOAT16)


def _stored(name: str, sources: Sources, initializers: Mapping[str, ir.Value]) -> StoredTensor | None:
    """The one stored tensor that is the initializer `name`: a parameter, or the row scales of its codes."""
    if name in sources:
        tensors = sources[name].pieces
    elif (weight := name.removesuffix("_scale")) in sources and weight in initializers:
        # Codes of another type are made here, and have scales of their own.
        is_stored = initializers[weight].dtype == _STORED[CODE_TYPE]
        tensors = sources[weight].scales if is_stored else ()
    else:
        return None
    return tensors[0] if len(tensors) == 1 else None


def _lazy(name: str, value: ir.Value, read: Callable[[], torch.Tensor]) -> ir.LazyTensor:
    dtype = value.dtype
    assert dtype is not None and value.shape is not None

    def evaluate() -> ir.TensorProtocol:
        tensor = read().to(_DTYPES[dtype])
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds values beyond {dtype.name}'s range; use --precision bf16 or fp32")
        return TorchTensor(tensor.contiguous(), name=name)

    return ir.LazyTensor(evaluate, dtype=dtype, shape=value.shape, name=name)


def weight_bytes(model: ir.Model) -> int:
    """Bytes of the tensors that `save` writes."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)


def expanded_bytes(model: ir.Model, itemsize: int) -> int:
    """Bytes of all tensors with float8 ones in a type of `itemsize` bytes; 0 without float8 or int8."""
    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    if any(tensor.dtype == ir.DataType.INT8 and tensor.size > 1 for tensor in tensors):
        return sum(tensor.nbytes for tensor in tensors)
    codes = [tensor for tensor in tensors if tensor.dtype == ir.DataType.FLOAT8E4M3FN]
    if sum(tensor.size for tensor in codes) <= 1:  # a zero point alone
        return 0
    return sum(tensor.size * itemsize if tensor in codes else tensor.nbytes for tensor in tensors)


def save(
    model: ir.Model, file: Path, progress: Callable[[int], None], place: Callable[[Path, Path], None] = os.symlink
) -> dict[Path, Path]:
    """Write `file`, and the tensors of the model beside it in ``weights``: the linked ones stay in their files, which
    `place` gives a second name there, the others in one new file.

    Calls `progress` with the number of bytes of each tensor before it is written.

    Returns:
        The second names, and the files that they are of.
    """
    folder = file.parent / WEIGHTS
    folder.mkdir(parents=True, exist_ok=True)
    written: list[ir.Value] = []
    linked: dict[Path, Path] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, StitchedTensor):
            continue
        if isinstance(tensor, ir.ExternalTensor):
            target = Path(tensor.path).resolve()
            name = folder / f"{target.parent.name}-{target.name}"  # files of several folders have the same name
            if name not in linked:
                linked[name] = target
                if not name.exists():
                    place(target, name)
            value.const_value = ir.ExternalTensor(
                f"{WEIGHTS}/{name.name}",
                tensor.offset,
                tensor.length,
                tensor.dtype,
                shape=tensor.shape,
                name=str(tensor.name),
                base_dir=file.parent,
            )
        elif tensor is not None and tensor.nbytes > _EMBEDDED_BYTES:
            written.append(value)
    if written:
        tensors = [value.const_value for value in written if value.const_value is not None]
        data = f"{WEIGHTS}/{file.stem}.data"
        external = convert_tensors_to_external(
            tensors, file.parent, data, callback=lambda tensor, _: progress(tensor.nbytes)
        )
        for value, tensor in zip(written, external, strict=True):
            value.const_value = tensor
    ir.save(model, file)
    return linked
