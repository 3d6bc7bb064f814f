"""How many bytes the weights of a stage take, where, and in which files they lie already."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import from_torch_dtype
from torch import nn

from export.graph.passes.codes import CODES
from export.graph.passes.join_products import groups
from export.graph.precision import Precision, torch_dtype
from export.graph.recipe import Recipe, quantized_weights
from export.graph.weights import is_held, is_linked
from model.checkpoint.directory import Checkpoint
from model.checkpoint.tensor_files import StoredTensor
from model.layers import set_compute_dtype

_CODE_TYPES = [codes.dtype for codes in CODES.values()]


@dataclass(frozen=True)
class _Held:
    """How a graph holds a parameter."""

    shape: torch.Size
    dtype: ir.DataType
    table: bool
    """Whether rows are taken from it."""

    @property
    def nbytes(self) -> int:
        return self.shape.numel() * int(self.dtype.itemsize)

    @property
    def scale_bytes(self) -> int:
        """Of the row scales that codes have."""
        return 4 * self.shape[0] if self.dtype in _CODE_TYPES else 0


def weight_bytes(checkpoint: Checkpoint, stage: str, precision: Precision, recipe: Recipe) -> int:
    """Bytes of a stage's weights: one for a code and four for each row's scale, else the compute type's."""
    return sum(held.nbytes + held.scale_bytes for held in _parameters(checkpoint, stage, precision, recipe).values())


def scratch_bytes(checkpoint: Checkpoint, stage: str, precision: Precision, recipe: Recipe) -> int:
    """Bytes of weights that are written for the builder of an engine, since no file holds them as it wants them."""
    sources, parameters = checkpoint.sources[stage], _parameters(checkpoint, stage, precision, recipe)
    written = {name for name, held in parameters.items() if not is_held(sources[name].pieces, held.dtype)}
    for _, names in groups(sources):
        parts = [part for name in names for part in sources[name].pieces]
        if not is_held(parts, parameters[names[0]].dtype):
            written |= set(names)
    return sum(parameters[name].nbytes for name in written)


def linked_bytes(
    checkpoint: Checkpoint, stage: str, precision: Precision, recipe: Recipe
) -> tuple[int, dict[Path, int]]:
    """What a linked graph for ONNX Runtime takes.

    Returns:
        Bytes of the weights that no file holds as the graph wants them, which are written; and the files that hold the
        others, with their sizes in bytes, which get second names.
    """
    written, files = 0, {}
    for name, held in _parameters(checkpoint, stage, precision, recipe).items():
        for stored, size in _tensors(checkpoint, stage, name, held):
            if stored is None:
                written += size
            else:
                files[stored.file.resolve()] = stored.file.stat().st_size
    return written, files


def _tensors(checkpoint: Checkpoint, stage: str, name: str, held: _Held) -> Iterator[tuple[StoredTensor | None, int]]:
    """The initializers that a parameter becomes, itself and its scales: where each is linked to, or None; its size."""
    source = checkpoint.sources[stage][name]
    one = source.pieces[0] if len(source.pieces) == 1 else None
    fits = one is not None and one.shape == held.shape and is_linked(one, held.dtype, held.table)
    yield one if fits else None, held.nbytes
    if held.scale_bytes:
        # Scales are those of the file if the codes are, and others if the weight is quantized here.
        scales = source.scales[0] if fits and len(source.scales) == 1 else None
        fits = scales is not None and is_linked(scales, ir.DataType.FLOAT, table=False)
        yield scales if fits else None, held.scale_bytes


def _parameters(checkpoint: Checkpoint, stage: str, precision: Precision, recipe: Recipe) -> dict[str, _Held]:
    """How the graph of a stage holds each parameter."""
    module = set_compute_dtype(checkpoint.module(stage), torch_dtype(precision.stage(stage)))
    coded: set[str] = set()
    if precision.codes and not stage.startswith("vae_"):
        coded = set(quantized_weights(module, stage, checkpoint.sources[stage], recipe, precision.codes))
    tables = {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, nn.Embedding)}
    return {
        name: _Held(
            p.shape, CODES[precision.codes].dtype if name in coded else from_torch_dtype(p.dtype), name in tables
        )  # type: ignore[index]
        for name, p in module.named_parameters()
    }
