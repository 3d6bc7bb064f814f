"""The packages TensorRT and TensorRT-RTX. The only file that imports tensorrt or tensorrt_rtx.

The Python interfaces of the two are the same but for a few names, which only TensorRT-RTX has: the validity check of
a plan's header, its own CUDA graphs, the cache of compiled kernels, and unloading weights. The module in use is
called `trt` throughout.
"""

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from runtime.errors import BackendError, Ideogram4Error
from runtime.tensorrt.callbacks import Callbacks

TITLES = {"rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}
CHUNK = 64 << 20
"""Bytes that are read from a plan at a time: what a load needs in host memory."""


class MissingPackageError(BackendError):
    """A backend's package is not installed or cannot be loaded."""


def load_package(backend: str) -> ModuleType:
    """The module ``tensorrt_rtx`` or ``tensorrt``; MissingPackageError names the extra to install."""
    try:
        if backend == "rtx":
            import tensorrt_rtx as trt
        else:
            import tensorrt as trt
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"{TITLES[backend]} is not installed ({error}); install the extra '{backend}'"
        ) from error
    except (ImportError, OSError) as error:
        raise MissingPackageError(f"{TITLES[backend]} is installed but cannot be loaded: {error}") from error
    return cast(ModuleType, trt)


class TensorRT:
    """A package in use: its module, its runtime object, and what it said last."""

    def __init__(self, backend: str, trt: Any) -> None:
        self.backend, self.trt = backend, trt
        self.title = f"{TITLES[backend]} {trt.__version__}"
        self.callbacks = Callbacks()
        # The logger must outlive the runtime, which does not hold it.
        self.log = _log(trt, self.callbacks)
        self.runtime = trt.Runtime(self.log)

    @property
    def rtx(self) -> bool:
        return self.backend == "rtx"

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Put around everything that calls TensorRT: signals and what callbacks raise come out at its end.

        Raises:
            BackendError: TensorRT's bindings raised RuntimeError, as they do where a call has no result to return.
        """
        self.log.last_error = ""
        with self.callbacks.delivered():
            try:
                yield
            except Ideogram4Error:
                raise
            except RuntimeError as error:
                raise BackendError(f"{self.title} failed: {error}") from error

    def failure(self, action: str) -> BackendError:
        """An error with TensorRT's own last error message."""
        said = self.log.last_error or "it gave no reason"
        self.log.last_error = ""
        return BackendError(f"{self.title} failed {action}: {said}")

    def open_plan(self, file: Path) -> Any:
        """An IStreamReaderV2 that reads a plan; its `problem` is what the file system said, its `file` to be closed."""
        return _plan_reader(self.trt, file, self.callbacks)


def _plan_reader(trt: Any, plan: Path, callbacks: Callbacks) -> Any:
    """Reads a plan for TensorRT: to its end, or to the first error or signal, after which there is nothing more."""

    class PlanReader(trt.IStreamReaderV2):  # type: ignore[misc]  # known only once the package is loaded
        def __init__(self) -> None:
            trt.IStreamReaderV2.__init__(self)
            self.file: io.FileIO = plan.open("rb", buffering=0)
            self.problem: OSError | None = None

        @callbacks.guarded(b"")
        def read(self, num_bytes: int, stream: int) -> bytes:
            if callbacks.ending:
                return b""
            try:
                return self.file.read(min(num_bytes, CHUNK)) or b""
            except OSError as error:
                self.problem = error
                return b""

        @callbacks.guarded(False)
        def seek(self, offset: int, where: Any) -> bool:
            try:
                if where == trt.SeekPosition.END:  # offsets count backward, whatever their sign
                    self.file.seek(-abs(offset), os.SEEK_END)
                else:
                    self.file.seek(offset, os.SEEK_CUR if where == trt.SeekPosition.CUR else os.SEEK_SET)
            except OSError as error:
                self.problem = error
                return False
            return True

    return PlanReader()


def _log(trt: Any, callbacks: Callbacks) -> Any:
    """TensorRT's messages, all for debugging: the last error is kept for whoever raises it.

    A logger of Python's waits for the interpreter's lock. That would be a deadlock if a thread of TensorRT's logged
    while an object of TensorRT's is freed, which holds the lock; `runtime.tensorrt.engine` chooses a compilation that
    leaves no such thread behind.
    """
    logger = logging.getLogger(__name__)

    class Log(trt.ILogger):  # type: ignore[misc]  # known only once the package is loaded
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = ""

        @callbacks.guarded()
        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.last_error = msg
            logger.debug("%s", msg)

    return Log()
