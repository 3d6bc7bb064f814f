"""Read the files of a checkpoint once, beside the other work: are all values finite, and what are the hashes?

Linked weights and those of engines never pass through this program, so what `model.checkpoint.tensor_files` checks of
a tensor that it reads is checked here. hashlib and numpy release the interpreter lock, so a thread does it while a
stage is built.
"""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from model.checkpoint.tensor_files import CheckpointError, StoredTensor

_CHUNK = 8 << 20
_EXPONENT = {
    "F8_E4M3": (np.uint8, 0x7F),
    "BF16": (np.uint16, 0x7F80),
    "F16": (np.uint16, 0x7C00),
    "F32": (np.uint32, 0x7F800000),
}
"""Bits that are all set in NaN and, but for e4m3, which has none, in infinity."""


class Scan:
    """The files of `tensors`, scanned one after another in a thread; `close` ends it."""

    def __init__(self, tensors: Iterable[StoredTensor]) -> None:
        files: dict[Path, list[StoredTensor]] = {}
        for tensor in dict.fromkeys(tensors):  # several backends' stages, or graphs, may be read from the same
            files.setdefault(tensor.file, []).append(tensor)
        self._pool = ThreadPoolExecutor(1)
        self._digests: Mapping[Path, Future[str]] = {
            file.resolve(): self._pool.submit(scan, file, parts) for file, parts in files.items()
        }

    def digests(self, tensors: Iterable[StoredTensor]) -> dict[Path, str]:
        """SHA-256 of the files of some of the tensors, by their real paths, when they have been read.

        CheckpointError for the first value in them that is not finite.
        """
        files = dict.fromkeys(tensor.file.resolve() for tensor in tensors)
        return {file: self._digests[file].result() for file in files}

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def scan(file: Path, tensors: Iterable[StoredTensor]) -> str:
    """SHA-256 of a safetensors file.

    Raises:
        CheckpointError: a tensor holds NaN or infinity, or a row scale is not above 0.
    """
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as stream:
        for tensor in sorted(tensors, key=lambda part: part.offset):
            _hash(stream, digest, tensor.offset - stream.tell())
            left = tensor.nbytes
            while left:
                chunk = stream.read(min(_CHUNK, left))
                if not chunk:
                    raise CheckpointError(f"{file} ends inside {tensor.name}")
                left -= len(chunk)
                digest.update(chunk)
                _check(tensor, chunk)
        _hash(stream, digest, None)
    return digest.hexdigest()


def _hash(stream, digest, count: int | None) -> None:
    while chunk := stream.read(_CHUNK if count is None else min(_CHUNK, count)):
        digest.update(chunk)
        count = None if count is None else count - len(chunk)


def _check(tensor: StoredTensor, chunk: bytes) -> None:
    kind, exponent = _EXPONENT.get(tensor.dtype, (None, 0))
    if kind is None:
        return
    bits = np.frombuffer(chunk, kind, count=len(chunk) // np.dtype(kind).itemsize)
    if ((bits & kind(exponent)) == exponent).any():
        raise CheckpointError(f"{tensor.file}: {tensor.name} holds NaN or infinity; the file is damaged")
    if tensor.dtype == "F32" and tensor.name.endswith("_scale") and not (bits.view(np.float32) > 0).all():
        raise CheckpointError(f"{tensor.file}: {tensor.name} holds a scale that is not above 0")
