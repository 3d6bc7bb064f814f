"""What TensorRT measured of its kernels, kept in a file beside the build's ledger.

TensorRT tries kernels on the GPU for every layer. With a cache, layers of the same sizes are tried once: the two
transformers share most of theirs, and so do a build that was interrupted and its next run. A cache belongs to one
version of TensorRT and one kind of GPU, which TensorRT itself checks. TensorRT-RTX has no use for one: it builds
without a GPU, and chooses kernels on the card where the plan runs.

The file is one line, ``ideogram4-timings 1`` and the SHA-256 of the rest, and then TensorRT's own bytes: what it does
with damaged ones is not documented.
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.atomic_directory import link_or_copy
from runtime.atomic_files import write_whole

TIMING_CACHE = "timing.cache"
_FORMAT = b"ideogram4-timings 1 "


class TimingCache:
    """The cache in a file, which may be missing. No fault of it fails a build: the worst is that all is tried again."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._cache: Any = None

    def attach(self, config: Any) -> None:
        """Let a builder's configuration use and extend the cache."""
        content = self._read()
        if content and self._set(config, content):
            return
        if content:
            self._warn("is ignored: it is of another version of TensorRT or another GPU")
        if not self._set(config, b""):
            self._warn("is not made: TensorRT gives none")

    def keep(self, config: Any) -> None:
        """Write what the build that had the configuration has measured."""
        cache = config.get_timing_cache()
        content = b"" if cache is None else bytes(cache.serialize())
        if not content:
            return
        try:
            write_whole(self.file, _header(content) + content)
        except OSError as error:
            self._warn(f"cannot be kept: {error}")

    def _set(self, config: Any, content: bytes) -> bool:
        # It must live until the engine is built, and the configuration does not hold it.
        self._cache = config.create_timing_cache(content)
        return self._cache is not None and bool(config.set_timing_cache(self._cache, False))

    def _read(self) -> bytes:
        """TensorRT's bytes; none if there is no such file, or not a whole one."""
        try:
            data = self.file.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            self._warn(f"cannot be read: {error}")
            return b""
        line, _, content = data.partition(b"\n")
        if line + b"\n" != _header(content):
            self._warn("is ignored: it is damaged")
            return b""
        return content

    def _warn(self, what: str) -> None:
        print(f"warning: the timing cache {self.file} {what}", file=sys.stderr)


def _header(content: bytes) -> bytes:
    return _FORMAT + hashlib.sha256(content).hexdigest().encode() + b"\n"


def carry_over(found: Sequence[Path], folder: Path) -> None:
    """Have a cache in the unfinished bundle in `folder`: the first of those that were `found`, its own if it has one.

    Its own was begun as a copy of that of the bundle that it replaces.
    """
    if found and found[0] != (own := folder / TIMING_CACHE):
        link_or_copy(found[0], own)
