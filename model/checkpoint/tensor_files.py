"""Tensors in safetensors files: one file, or an index with shards. Nothing is read before it is asked for."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.checkpoint.fp8 import quantize_rows

if TYPE_CHECKING:
    from model.checkpoint.nf4 import Nf4Tensor
    from model.checkpoint.sources import Folded


class CheckpointError(ValueError):
    """A checkpoint is incomplete, damaged, or of a kind that is not read."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file."""

    file: Path
    name: str
    dtype: str
    """As in the file's header: F32, BF16, F8_E4M3, …"""
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""
    nbytes: int

    @property
    def stored(self) -> "tuple[StoredTensor, ...]":
        """All that it is read from: itself."""
        return (self,)

    def read(self) -> Tensor:
        """The tensor in its stored type, on the CPU."""
        with safe_open(self.file, framework="pt") as stored:
            return stored.get_tensor(self.name)


def stored_tensors(folder: Path, stem: str) -> dict[str, StoredTensor]:
    """All tensors of ``stem.safetensors``, or of the shards in ``stem.safetensors.index.json``.

    Raises:
        CheckpointError: a file is missing, truncated or not safetensors, or the index names a tensor that its shard
            does not hold.
    """
    index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
    if not index.is_file():
        if not single.is_file():
            raise CheckpointError(f"{folder} holds neither {single.name} nor {index.name}")
        return header(single)
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor names to file names")
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(shards.values())):
        if not (folder / shard).is_file():
            raise CheckpointError(f"{index} names the shard {shard}, which is missing")
        tensors |= header(folder / shard)
    if absent := sorted(name for name, shard in shards.items() if name not in tensors):
        raise CheckpointError(f"{index} names {absent[0]} (and {len(absent) - 1} more), which no shard holds")
    return tensors


def header(file: Path) -> dict[str, StoredTensor]:
    """All tensors of one file; CheckpointError when it is not a whole safetensors file."""
    try:
        with safe_open(file, framework="pt"):
            pass  # the library checks that the header is sound and that the file is whole
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}") from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = StoredTensor(file, name, entry["dtype"], tuple(entry["shape"]), 8 + size + begin, end - begin)
    return tensors


def read_json(file: Path) -> dict:
    """A JSON object from a file; CheckpointError when it is missing or is something else."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} holds a {type(data).__name__}, wanted an object")
    return data


FLOAT_TYPES = ("F32", "F16", "BF16")
CODE_TYPE = "F8_E4M3"
_NAN_CODE = 0x7F
"""All bits but the sign: e4m3's only value that is no number."""


@dataclass(frozen=True)
class Source:
    """Where a parameter comes from: stored tensors that follow one another along the first dimension.

    There is more than one part where the checkpoint splits what the model fuses (q, k and v).
    """

    parts: "tuple[StoredTensor | Nf4Tensor, ...]"
    scales: tuple[StoredTensor, ...] = ()
    """One scale per row for each part in float8; empty otherwise."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:]) if self.parts[0].shape else ()

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        """All that it is read from."""
        return tuple(tensor for part in self.parts for tensor in part.stored) + self.scales

    @property
    def coded(self) -> bool:
        """Whether the checkpoint holds float8 codes and row scales for it."""
        return bool(self.scales)

    def read(self) -> Tensor:
        """The parameter in float32; float8 codes are multiplied by their row's scale in float32."""
        if not self.coded:
            return _joined([_checked(part, part.read().float()) for part in self.parts])
        codes, scales = self.read_codes()
        return codes.float() * scales.reshape(-1, *[1] * (codes.ndim - 1))

    def quantized(self) -> tuple[Tensor, Tensor]:
        """Codes and row scales as `read_codes` gives them; those of a float parameter (out, in) are made here."""
        return self.read_codes() if self.coded else quantize_rows(self.read())

    def read_codes(self) -> tuple[Tensor, Tensor]:
        """The codes (out, in) float8_e4m3fn and row scales (out,) float32, as the file holds them."""
        codes = [part.read() for part in self.parts]
        scales = [_checked(scale, scale.read().float()) for scale in self.scales]
        for part, values in zip(self.parts, codes, strict=True):
            if ((values.view(torch.uint8) & _NAN_CODE) == _NAN_CODE).any():
                raise CheckpointError(f"{part.file}: {part.name} holds NaN or infinity; the file is damaged")
        for stored, scale in zip(self.scales, scales, strict=True):
            if not (scale > 0).all():
                raise CheckpointError(f"{stored.file}: {stored.name} holds a scale that is not above 0")
        # torch.cat does not know float8.
        return _joined([part.view(torch.uint8) for part in codes]).view(torch.float8_e4m3fn), _joined(scales)


@dataclass(frozen=True)
class Joined:
    """Several sources one after another along the first dimension, as if they were one."""

    sources: "tuple[Source | Folded, ...]"

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(source.shape[0] for source in self.sources), *self.sources[0].shape[1:])

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        return tuple(tensor for source in self.sources for tensor in source.stored)

    @property
    def coded(self) -> bool:
        return all(source.coded for source in self.sources)

    def read(self) -> Tensor:
        return torch.cat([source.read() for source in self.sources])

    def quantized(self) -> tuple[Tensor, Tensor]:
        return self._codes([source.quantized() for source in self.sources])

    def read_codes(self) -> tuple[Tensor, Tensor]:
        return self._codes([source.read_codes() for source in self.sources])

    def _codes(self, pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        codes, scales = zip(*pairs, strict=True)
        return _joined([part.view(torch.uint8) for part in codes]).view(torch.float8_e4m3fn), torch.cat(scales)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _checked(stored: "StoredTensor | Nf4Tensor", values: Tensor) -> Tensor:
    if not torch.isfinite(values).all():
        raise CheckpointError(f"{stored.file}: {stored.name} holds NaN or infinity; the file is damaged")
    return values
