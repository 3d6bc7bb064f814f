"""Parts of files as one piece of memory, neither read nor copied.

TensorRT takes a joined weight (`export.graph.passes.join_products`) as one array, and the checkpoint holds its parts in
two or three places. Where those are whole pages of memory long, as all matrices of the released model are, the pages
can be mapped one behind the other. A copy would lie on the disk, 3.9 GB for a transformer, or in memory that the
builder needs.
"""

import ctypes
import mmap
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import onnx_ir as ir

PAGE = mmap.PAGESIZE
_FIXED, _FAILED = 0x10, ctypes.c_void_p(-1).value
"""Linux' MAP_FIXED, which Python's mmap does not have, and what mmap returns when it fails."""


class Part(Protocol):
    """Some bytes of a file."""

    @property
    def file(self) -> Path: ...
    @property
    def offset(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


def can_stitch(parts: Sequence[Part]) -> bool:
    """Whether parts can be mapped one behind the other: each must begin at the same place of its page as the first."""
    begins = {part.offset % PAGE for part in parts}
    return sys.platform == "linux" and len(begins) == 1 and not any(part.nbytes % PAGE for part in parts[:-1])


class StitchedTensor(ir.ExternalTensor):
    """An initializer whose bytes are parts of files; it is given to TensorRT by address, and no file holds it whole."""

    def __init__(self, parts: Sequence[Part], dtype: ir.DataType, shape: ir.Shape, name: str) -> None:
        size = sum(part.nbytes for part in parts)
        super().__init__("stitched", 0, size, dtype, shape=shape, name=name)
        self.parts = tuple(parts)


def stitched_tensors(model: ir.Model) -> list[StitchedTensor]:
    """Those of a model."""
    values = (value.const_value for value in model.graph.initializers.values())
    return [tensor for tensor in values if isinstance(tensor, StitchedTensor)]


class Stitched:
    """The mapping, at `address` while the context is open; the pages are those of the files."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts, self.size = parts, sum(part.nbytes for part in parts)

    def __enter__(self) -> "Stitched":
        libc = _libc()
        before = self.parts[0].offset % PAGE
        self._length = -(-(before + self.size) // PAGE) * PAGE
        anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._base = _mapped(libc.mmap(None, self._length, mmap.PROT_READ | mmap.PROT_WRITE, anonymous, -1, 0))
        self.address = self._base + before
        end = self._base
        previous: Part | None = None
        for part in self.parts:
            length = -(-(before + part.nbytes) // PAGE) * PAGE
            with part.file.open("rb") as stream:
                _mapped(
                    libc.mmap(
                        end,
                        length,
                        mmap.PROT_READ | mmap.PROT_WRITE,
                        mmap.MAP_PRIVATE | _FIXED,
                        stream.fileno(),
                        part.offset - before,
                    )
                )
            if previous is not None and before:
                # The page at the seam begins with the last bytes of the part before; written to, it is a copy.
                ctypes.memmove(end, _last_bytes(previous, before), before)
            end, previous = end + part.nbytes, part
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _libc().munmap(self._base, self._length)


def _last_bytes(part: Part, count: int) -> bytes:
    with part.file.open("rb") as stream:
        stream.seek(part.offset + part.nbytes - count)
        return stream.read(count)


def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype, libc.munmap.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_size_t)
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    return libc


def _mapped(address: int | None) -> int:
    if address is None or address == _FAILED:
        raise MemoryError(f"cannot map weights: {os.strerror(ctypes.get_errno())}")
    return address
