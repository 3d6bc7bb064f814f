"""bitsandbytes' 4-bit weights, read without bitsandbytes.

A weight W of n values is stored as several tensors:

    W                              U8 [(n + 1) / 2, 1]  two codes to a byte, the first in the upper half
    W.quant_map                    F32 [16]             the value of each code, in [-1, 1]
    W.absmax                       F32 [n / block]      the largest magnitude of each block of values in a row
    W.quant_state.bitsandbytes__T  U8                   JSON: quant_type, blocksize, dtype, shape

and is ``quant_map[code] * absmax`` rounded to ``dtype``, which is what bitsandbytes makes of it as well. With double
quantization ``absmax`` holds 8-bit codes itself: ``nested_quant_map[code] * nested_absmax + nested_offset``, in blocks
of ``nested_blocksize``. Blocks follow one another through the rows of a weight. Format: bitsandbytes 0.50
``functional.py``, ``QuantState.as_dict``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoint.tensor_files import FLOAT_TYPES, CheckpointError, Identity, StoredTensor, finite
from runtime.bundle.json_fields import DecodeError, parse

TYPE = "NF4"
_STATE = ".quant_state.bitsandbytes__"
_SUFFIXES = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Block sizes that bitsandbytes takes; the released checkpoints have 64."""
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_LARGEST = torch.finfo(torch.float32).max
_PIECE = 4 << 20
"""Bytes of codes that are looked up at a time."""


@dataclass(frozen=True)
class Blocks:
    """Numbers that were quantized in blocks: a table of values, and a factor for each block."""

    table: StoredTensor
    factors: "StoredTensor | Blocks"
    codes: StoredTensor
    size: int
    """Numbers in a block."""
    offset: float = 0.0
    """Added in the end."""

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        """The tensors that they are read from."""
        return (self.table, *self.factors.stored, self.codes)

    @property
    def identity(self) -> Identity:
        """All that the numbers depend on, but for the files' contents."""
        return self.table.identity, self.factors.identity, self.codes.identity, self.size, self.offset

    def read(self, count: int) -> Tensor:
        """The first `count` numbers, float32."""
        table, codes = _numbers(self.table), self.codes.read().flatten()
        if self.table.shape == (16,):  # two to a byte: look up both at once
            table = torch.stack((table.repeat_interleave(16), table.repeat(16)), dim=1)
        found = torch.empty((len(codes), *table.shape[1:]))
        for start in range(0, len(codes), _PIECE):
            torch.index_select(table, 0, codes[start : start + _PIECE].int(), out=found[start : start + _PIECE])
        values = found.flatten()[:count]
        blocks = -(-count // self.size)
        factors = self.factors.read(blocks) if isinstance(self.factors, Blocks) else _numbers(self.factors)
        whole = count - count % self.size
        values[:whole].view(-1, self.size).mul_(factors[: whole // self.size, None])
        values[whole:] *= factors[-1]
        return values.add_(self.offset) if self.offset else values


@dataclass(frozen=True)
class Nf4Tensor:
    """A 4-bit weight; takes the place of a `StoredTensor` among the parts of a weight."""

    file: Path
    name: str
    shape: tuple[int, ...]
    rounding: torch.dtype
    """Type that the values are rounded to."""
    blocks: Blocks
    dtype: str = TYPE

    @property
    def stored(self) -> tuple[StoredTensor, ...]:
        """The tensors that it is read from."""
        return self.blocks.stored

    @property
    def pieces(self) -> tuple[StoredTensor, ...]:
        """None: its values are computed from what is stored."""
        return ()

    @property
    def identity(self) -> Identity:
        return "nf4", self.name, self.shape, str(self.rounding), self.blocks.identity

    def read(self) -> Tensor:
        """The values in the type that bitsandbytes gives them, on the CPU. CheckpointError when they are not finite."""
        return self.blocks.read(math.prod(self.shape)).view(self.shape).to(self.rounding)


def gather(
    folder: Path, stored: Mapping[str, StoredTensor], problems: list[str]
) -> dict[str, StoredTensor | Nf4Tensor]:
    """The tensors of a folder with each 4-bit weight in one piece; appends what is wrong with one to `problems`."""
    groups: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        for suffix in (_STATE, *_SUFFIXES):
            weight, found, kind = name.partition(suffix)
            if found and (suffix == _STATE or not kind):
                groups.setdefault(weight, {})[found + kind] = tensor
    for weight in groups.keys() & stored.keys():
        groups[weight][""] = stored[weight]
    used = {weight + suffix for weight, parts in groups.items() for suffix in parts}
    tensors: dict[str, StoredTensor | Nf4Tensor] = {n: t for n, t in stored.items() if n not in used}
    for weight, parts in groups.items():
        try:
            tensors[weight] = _weight(weight, parts)
        except CheckpointError as error:
            problems.append(f"{folder.name}: {error}")
    return tensors


def _weight(name: str, parts: Mapping[str, StoredTensor]) -> Nf4Tensor:
    for part in parts:
        if part.startswith(_STATE) and part != _STATE + "nf4":
            raise CheckpointError(f"{name} has bitsandbytes' type {part.removeprefix(_STATE)!r}, wanted 'nf4'")
    nested = any(part.startswith(".nested_") for part in parts)
    wanted = ["", _STATE + "nf4", *(_SUFFIXES if nested else _SUFFIXES[:2])]
    if missing := [name + suffix for suffix in wanted if suffix not in parts]:
        raise CheckpointError(f"missing tensor {', '.join(missing)} of the nf4 weight {name}")
    codes, state = parts[""], _state(parts[_STATE + "nf4"])
    if (dtype := state.get("dtype")) not in _DTYPES:
        raise CheckpointError(f"{name}: quant_state says dtype {dtype!r}, wanted one of {', '.join(_DTYPES)}")
    shape, size = _shape(name, state), _block_size(name, state, "blocksize")
    count = math.prod(shape)
    _check(codes, ("U8",), ((count + 1) // 2, 1))
    _check(parts[".quant_map"], FLOAT_TYPES, (16,))
    factors = _factors(name, parts, -(-count // size), state if nested else None)
    return Nf4Tensor(codes.file, name, shape, _DTYPES[dtype], Blocks(parts[".quant_map"], factors, codes, size))


def _factors(
    name: str, parts: Mapping[str, StoredTensor], count: int, nested: Mapping[str, Any] | None
) -> StoredTensor | Blocks:
    """The `count` magnitudes of a weight; `nested` is its state if they were quantized once more."""
    if nested is None:
        _check(parts[".absmax"], FLOAT_TYPES, (count,))
        return parts[".absmax"]
    size = _block_size(name, nested, "nested_blocksize")
    offset: Any = nested.get("nested_offset")
    if type(offset) not in (int, float) or not abs(offset) <= _LARGEST:  # false for NaN
        raise CheckpointError(f"{name}: quant_state says nested_offset {offset!r:.60}, wanted a number")
    _check(parts[".absmax"], ("U8",), (count,))
    _check(parts[".nested_quant_map"], FLOAT_TYPES, (256,))
    _check(parts[".nested_absmax"], FLOAT_TYPES, (-(-count // size),))
    return Blocks(parts[".nested_quant_map"], parts[".nested_absmax"], parts[".absmax"], size, float(offset))


def _state(tensor: StoredTensor) -> dict[str, Any]:
    if tensor.dtype != "U8" or len(tensor.shape) != 1:
        raise CheckpointError(f"{tensor.name} is {tensor.dtype}{list(tensor.shape)}, wanted the bytes of a JSON object")
    try:
        state = parse(bytes(tensor.read().tolist()), tensor.name)
    except DecodeError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(state, dict) or state.get("quant_type") != "nf4":
        kind = state.get("quant_type") if isinstance(state, dict) else state
        raise CheckpointError(f"{tensor.name} says quant_type {kind!r}, wanted 'nf4'")
    return state


def _shape(name: str, state: Mapping[str, Any]) -> tuple[int, ...]:
    shape = state.get("shape")
    if not isinstance(shape, list) or not shape or not all(type(size) is int and size > 0 for size in shape):
        raise CheckpointError(f"{name}: quant_state says shape {shape!r}, wanted a list of sizes")
    return tuple(shape)


def _block_size(name: str, state: Mapping[str, Any], key: str) -> int:
    size = state.get(key)
    if type(size) is not int or size not in _BLOCKS:
        raise CheckpointError(f"{name}: quant_state says {key} {size!r}, wanted one of {', '.join(map(str, _BLOCKS))}")
    return size


def _check(tensor: StoredTensor, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
    if tensor.dtype not in dtypes or tensor.shape != shape:
        raise CheckpointError(
            f"{tensor.name} is {tensor.dtype}{list(tensor.shape)}, wanted {' or '.join(dtypes)}{list(shape)}"
        )


def _numbers(tensor: StoredTensor) -> Tensor:
    return finite(tensor.read().float(), tensor.file, tensor.name)
