"""Where the weights of a model come from.

A weight is *stored* in the files of a checkpoint, *known* without any file, *joined* from several others, *scaled* by
rows and columns, or *folded* with low-rank updates (`model.checkpoint.folded`). Each kind is a `Weight`, and the reader
of one need not know which. Nothing is read or computed before it is asked for.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from model.checkpoint.row_codes import decode_e4m3, quantize_rows
from model.checkpoint.tensor_files import CheckpointError, Identity, StoredTensor, finite

_NAN_CODE = 0x7F
"""All bits but the sign: e4m3's only value that is not a number."""


class Weight(Protocol):
    """The value of a parameter, to be read later."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter."""

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        """The tensors that it is read from, row scales included; empty if it is not in the checkpoint's files."""

    @property
    def pieces(self) -> tuple[StoredTensor, ...]:
        """The tensors whose bytes, one after another, are the parameter or its codes; empty if it is computed."""

    @property
    def scales(self) -> tuple[StoredTensor, ...]:
        """The row scales of the codes, one tensor for each of `pieces`; empty unless `coded`."""

    @property
    def coded(self) -> bool:
        """Whether the files hold float8 codes and row scales for it."""

    @property
    def identity(self) -> Identity:
        """All that its value depends on, but for the contents of the files in `stored`."""

    def read(self) -> Tensor:
        """The parameter in float32. CheckpointError if the file is damaged."""

    def quantized(self) -> tuple[Tensor, Tensor]:
        """Codes (out, in) float8_e4m3fn and row scales (out,) float32: those of the files, or made here.

        Raises:
            CheckpointError: the file is damaged.
        """


Sources = dict[str, Weight]
"""Parameters of a stage, by name."""


class Part(Protocol):
    """What a checkpoint holds of a stored weight: a tensor, or several that together encode one."""

    @property
    def file(self) -> Path:
        """The file, for messages."""

    @property
    def name(self) -> str:
        """In the file."""

    @property
    def dtype(self) -> str:
        """As the file names it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values."""

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        """The tensors that it is read from."""

    @property
    def pieces(self) -> tuple[StoredTensor, ...]:
        """The tensors whose bytes are its own; empty if its values are computed."""

    @property
    def identity(self) -> Identity:
        """As of a `Weight`."""

    def read(self) -> Tensor:
        """The values in their stored type."""


@dataclass(frozen=True)
class Stored:
    """A weight in the checkpoint's files.

    There is more than one part where the checkpoint splits what the model fuses (q, k and v).
    """

    parts: tuple[Part, ...]
    """One after another along the first dimension."""
    scales: tuple[StoredTensor, ...] = ()
    """One scale per row for each part in float8; empty otherwise."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:]) if self.parts[0].shape else ()

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        return tuple(tensor for part in self.parts for tensor in part.stored) + self.scales

    @property
    def pieces(self) -> tuple[StoredTensor, ...]:
        return _all_pieces(self.parts)

    @property
    def coded(self) -> bool:
        return bool(self.scales)

    @property
    def identity(self) -> Identity:
        parts, scales = (tuple(part.identity for part in parts) for parts in (self.parts, self.scales))
        return "stored", parts, scales

    def read(self) -> Tensor:
        """The parameter in float32; float8 codes are multiplied by their row's scale in float32."""
        if not self.coded:
            return _concatenated([finite(part.read().float(), part.file, part.name) for part in self.parts])
        codes, scales = self.read_codes()
        return decode_e4m3(codes).mul_(scales.reshape(-1, *[1] * (codes.ndim - 1)))

    def quantized(self) -> tuple[Tensor, Tensor]:
        return self.read_codes() if self.coded else quantize_rows(self.read())

    def read_codes(self) -> tuple[Tensor, Tensor]:
        """The codes (out, in) float8_e4m3fn and row scales (out,) float32 of a coded weight, as the file holds them.

        Raises:
            CheckpointError: a code is NaN, or a scale is not a finite number above 0.
        """
        codes = [part.read() for part in self.parts]
        scales = [finite(scale.read().float(), scale.file, scale.name) for scale in self.scales]
        for part, values in zip(self.parts, codes, strict=True):
            if (values.view(torch.uint8) & _NAN_CODE).amax() == _NAN_CODE:
                raise CheckpointError(f"{part.file}: {part.name} holds NaN or infinity; the file is damaged")
        for stored, scale in zip(self.scales, scales, strict=True):
            if not (scale > 0).all():
                raise CheckpointError(f"{stored.file}: {stored.name} holds a scale that is not above 0")
        return _concatenated_codes(codes), _concatenated(scales)


@dataclass(frozen=True)
class Known:
    """A weight whose value is in memory."""

    value: Tensor
    """float32"""
    stored: ClassVar[tuple[StoredTensor, ...]] = ()
    pieces: ClassVar[tuple[StoredTensor, ...]] = ()
    scales: ClassVar[tuple[StoredTensor, ...]] = ()
    coded: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def identity(self) -> Identity:
        return "known", _digest(self.value)

    def read(self) -> Tensor:
        return self.value

    def quantized(self) -> tuple[Tensor, Tensor]:
        return quantize_rows(self.value)


@dataclass(frozen=True)
class Joined:
    """Several weights one after another along the first dimension, as if they were one."""

    weights: tuple[Weight, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(weight.shape[0] for weight in self.weights), *self.weights[0].shape[1:])

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        return tuple(tensor for weight in self.weights for tensor in weight.stored)

    @property
    def pieces(self) -> tuple[StoredTensor, ...]:
        return _all_pieces(self.weights)

    @property
    def scales(self) -> tuple[StoredTensor, ...]:
        return tuple(scale for weight in self.weights for scale in weight.scales) if self.coded else ()

    @property
    def coded(self) -> bool:
        return all(weight.coded for weight in self.weights)

    @property
    def identity(self) -> Identity:
        return "joined", *(weight.identity for weight in self.weights)

    def read(self) -> Tensor:
        return torch.cat([weight.read() for weight in self.weights])

    def quantized(self) -> tuple[Tensor, Tensor]:
        codes, scales = zip(*(weight.quantized() for weight in self.weights), strict=True)
        return _concatenated_codes(codes), torch.cat(scales)


@dataclass(frozen=True, eq=False)
class Derived:
    """What is common to weights that are computed from another one: no file holds them as they are."""

    base: Weight
    pieces: ClassVar[tuple[StoredTensor, ...]] = ()
    scales: ClassVar[tuple[StoredTensor, ...]] = ()
    coded: ClassVar[bool] = False

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        """What the base is read from in the checkpoint."""
        return self.base.stored

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape


@dataclass(frozen=True, eq=False)
class Scaled(Derived):
    """A weight (out, in), or a vector of norm weights (out,), times factors, in float32."""

    rows: Tensor | None = None
    """(out,) float32"""
    columns: Tensor | None = None
    """(in,) float32"""

    @property
    def identity(self) -> Identity:
        factors = (None if factor is None else _digest(factor) for factor in (self.rows, self.columns))
        return "scaled", self.base.identity, *factors

    def read(self) -> Tensor:
        weight = self.base.read()
        if self.rows is not None:
            weight = weight * self.rows.reshape(-1, *[1] * (weight.ndim - 1))
        return weight if self.columns is None else weight * self.columns

    def quantized(self) -> tuple[Tensor, Tensor]:
        return quantize_rows(self.read())


def _all_pieces(parts: Sequence[Part | Weight]) -> tuple[StoredTensor, ...]:
    """The pieces of all parts, or none if any part has to be computed."""
    each = [part.pieces for part in parts]
    return tuple(piece for pieces in each for piece in pieces) if all(each) else ()


def _digest(values: Tensor) -> str:
    """Hexadecimal digits of a tensor's type, shape and values."""
    content = values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{values.dtype} {tuple(values.shape)} ".encode() + content).hexdigest()


def _concatenated(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _concatenated_codes(parts: Sequence[Tensor]) -> Tensor:
    # torch.cat does not know float8.
    return _concatenated([part.view(torch.uint8) for part in parts]).view(torch.float8_e4m3fn)
