"""Tensors in safetensors files: one file, or an index with shards. No tensor is read before it is asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from runtime.bundle.json_fields import DecodeError, parse
from runtime.errors import SAID, SHOWN, cut, shown

FLOAT_TYPES = ("F32", "F16", "BF16")
CODE_TYPE = "F8_E4M3"
_LONGEST_NAME = 255
"""Characters that the name of a file can have on any system."""
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    CODE_TYPE: torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By the names that safetensors' headers use."""
Identity = tuple[object, ...]
"""What tells one value from another without reading it: plain values, and tuples of them."""


class CheckpointError(ValueError):
    """A checkpoint is incomplete, damaged, or in a format that is not supported."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file."""

    file: Path
    name: str
    dtype: str
    """As in the file's header: F32, BF16, F8_E4M3, …"""
    shape: tuple[int, ...]
    offset: int
    """Of its first byte from the start of the file."""
    nbytes: int
    """Bytes that it takes there."""

    @property
    def stored(self) -> tuple["StoredTensor", ...]:
        """The tensors that it is read from: itself."""
        return (self,)

    @property
    def pieces(self) -> tuple["StoredTensor", ...]:
        """The tensors whose bytes are its own: itself."""
        return (self,)

    @property
    def identity(self) -> Identity:
        """Where it is. What the file holds there, the file's own stamp must tell."""
        return self.file.parent.name, self.file.name, self.name, self.dtype, self.shape, self.offset, self.nbytes

    def read(self) -> Tensor:
        """The tensor in its stored type, on the CPU; CheckpointError for a type that PyTorch does not have.

        Read and not mapped: page faults are several times slower than a read of the same bytes.
        """
        if self.dtype not in _DTYPES:
            raise CheckpointError(
                f"{self.file}: {self.name} has the type {self.dtype}, wanted one of {', '.join(_DTYPES)}"
            )
        values = torch.empty(self.nbytes, dtype=torch.uint8)
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            if stream.readinto(values.numpy().data) != self.nbytes:
                raise CheckpointError(
                    f"{self.file}: {self.name} ends before its {self.nbytes} bytes; the file is damaged"
                )
        return values.view(_DTYPES[self.dtype]).reshape(self.shape)


def stored_tensors(folder: Path, stem: str) -> dict[str, StoredTensor]:
    """All tensors of ``stem.safetensors``, or of the shards in ``stem.safetensors.index.json``.

    Raises:
        CheckpointError: a file is missing, truncated or not safetensors, or the index names a file elsewhere, or a
            tensor that its shard does not hold.
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
        if shard in ("", "..") or Path(shard).name != shard or len(shard) > _LONGEST_NAME:
            raise CheckpointError(f"{index} names the shard {shown(shard)}, wanted the name of a file beside it")
        if not (folder / shard).is_file():
            raise CheckpointError(f"{index} names the shard {shard}, which is missing")
        tensors |= header(folder / shard)
    if absent := sorted(name for name, shard in shards.items() if name not in tensors):
        raise CheckpointError(
            f"{index} names {cut(absent[0], SHOWN)} (and {len(absent) - 1} more), which no shard holds"
        )
    return tensors


def header(file: Path) -> dict[str, StoredTensor]:
    """All tensors of one file; CheckpointError when it is not a whole safetensors file."""
    try:
        with safe_open(file, framework="pt"):
            pass  # the library checks that the header is sound and that the file is whole
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = parse(stream.read(size), "its header")
    except (SafetensorError, OSError, DecodeError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {cut(str(error), SAID)}") from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = StoredTensor(file, name, entry["dtype"], tuple(entry["shape"]), 8 + size + begin, end - begin)
    return tensors


def finite(values: Tensor, file: Path, name: str) -> Tensor:
    """The `values` of the tensor `name` of a file; CheckpointError when one is NaN or infinite."""
    if not torch.isfinite(values).all():
        raise CheckpointError(f"{file}: {name} holds NaN or infinity; the file is damaged")
    return values


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file; CheckpointError when the file is missing or holds something else."""
    try:
        data = parse(file.read_text(encoding="utf-8"), str(file))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is not UTF-8 text: {error}") from error
    except DecodeError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} holds a {type(data).__name__}, wanted an object")
    return data
