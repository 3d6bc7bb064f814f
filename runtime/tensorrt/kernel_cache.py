"""Kernels that TensorRT-RTX compiled for a GPU, kept in a file: the next start need not compile them again.

TensorRT-RTX compiles a plan's kernels for the GPU at hand when it loads the plan, and better ones in the background
while it runs. A file belongs to one set of engines, TensorRT-RTX version, GPU and driver. TensorRT-RTX itself refuses
a file that does not fit; it is then replaced.
"""

import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.atomic_files import write_whole
from runtime.bundle.graph_specs import EngineSet
from runtime.bundle.manifest import FileSpec
from runtime.tensorrt.cuda import Gpu

_log = logging.getLogger(__name__)


def cache_name(engines: EngineSet, files: Mapping[str, FileSpec], gpu: Gpu) -> str:
    """File name with everything that makes kernels useless when it changes."""
    plans = "".join(sorted(files[spec.plan].sha256 for spec in engines.graphs.values()))
    key = hashlib.sha256(f"{plans} {gpu.driver}".encode()).hexdigest()[:16]
    name = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    return f"rtx-{engines.version}-{gpu.capability}-{name}-{key}.kernels"


class KernelCache:
    """TensorRT-RTX's cache object, shared by all engines of a set. It must outlive their contexts."""

    def __init__(self, file: Path | None) -> None:
        """`file`: where they are kept from one start to the next; None to share them in this process only."""
        self.file = file
        self.cache: Any = None
        self.stored = b""

    def attach(self, config: Any) -> None:
        """Let contexts that are made with this runtime configuration use the cache, filled from the file at first."""
        if self.cache is None:
            self.cache = config.create_runtime_cache()
            try:
                self.stored = b"" if self.file is None else self.file.read_bytes()
            except FileNotFoundError:  # the first start
                self.stored = b""
            except OSError as error:
                _log.warning("cannot read %s: %s; its kernels are compiled again", self.file, str(error))
                self.stored = b""
            if self.stored and not self.cache.deserialize(self.stored):
                self.stored = b""
        if not config.set_runtime_cache(self.cache):
            _log.warning("TensorRT-RTX takes no cache of compiled kernels; every start compiles them again")

    def store(self) -> None:
        """Write the file if there is something new; when that fails, log it: everything works without."""
        if self.cache is None or self.file is None:
            return
        serialized = self.cache.serialize()
        if serialized is None:  # as any call of TensorRT that fails
            _log.warning("cannot keep compiled kernels in %s: TensorRT-RTX gives none", self.file)
            return
        content = bytes(serialized)
        if not content or content == self.stored:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.file, content)
        except OSError as error:
            _log.warning("cannot keep compiled kernels in %s: %s", self.file, str(error))
        else:
            self.stored = content
