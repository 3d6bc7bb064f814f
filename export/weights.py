"""Give the parameters of a traced graph their values, and write graph and weights.

Values are read from the checkpoint one tensor at a time while the file is written, so the memory needed is that of
the largest tensor in float32, not of the model.
"""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor

from model.checkpoint import Sources

_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}
_EMBEDDED_BYTES = 1024
"""Smaller tensors stay inside the .onnx file."""


def attach(model: ir.Model, sources: Sources) -> None:
    """Make every parameter of `model` a tensor that is read from its source when it is written."""
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            value.const_value = _lazy(name, value, sources[name].read)


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


def save(model: ir.Model, file: Path, weights: str, progress: Callable[[int], None]) -> None:
    """Write `file` with its tensors in `weights`, a path relative to the file's directory.

    Calls `progress` with the number of bytes of each tensor before it is written.
    """
    (file.parent / weights).parent.mkdir(parents=True, exist_ok=True)
    ir.save(
        model, file, external_data=weights, size_threshold_bytes=_EMBEDDED_BYTES,
        callback=lambda tensor, _: progress(tensor.nbytes),
    )  # fmt: skip
