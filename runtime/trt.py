"""TensorRT and TensorRT-RTX: plans to engines. The only file that imports tensorrt or tensorrt_rtx.

The Python interfaces of the two are the same but for a few names, which only TensorRT-RTX has: the validity check of
a plan's header, its own CUDA graphs, the cache of compiled kernels, and unloading weights. The module in use is
called `trt` throughout.
"""

import io
import logging
import os
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from runtime.captures import Captures
from runtime.cuda import Device
from runtime.device_buffers import Arena
from runtime.manifest import BundleError, EngineSpec

TITLES = {"rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}
CHUNK = 64 << 20
"""Bytes that are read from a plan at a time: what a load needs in host memory."""


class MissingPackageError(RuntimeError):
    """A backend's package is not installed or cannot be loaded."""


class KernelStore(Protocol):
    """Where compiled kernels are kept; see `runtime.kernel_cache`."""

    def attach(self, config: Any) -> None:
        """Let contexts that are made with this runtime configuration use and extend the store."""
        ...


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
    return trt


class TensorRT:
    """A package in use: its module, its runtime object, and what it said last."""

    def __init__(self, backend: str, trt: Any) -> None:
        self.backend, self.trt = backend, trt
        self.title = f"{TITLES[backend]} {trt.__version__}"
        # The logger must outlive the runtime, which does not hold it.
        self.log = _log(trt)
        self.runtime = trt.Runtime(self.log)

    @property
    def rtx(self) -> bool:
        return self.backend == "rtx"

    def failure(self, action: str) -> RuntimeError:
        """An error with TensorRT's own last error message."""
        said = self.log.last_error or "it gave no reason"
        self.log.last_error = ""
        return RuntimeError(f"{self.title} failed {action}: {said}")

    def check_plan(self, file: Path) -> None:
        """Raise BundleError if the plan's header says that it cannot run here. Only TensorRT-RTX can tell."""
        if not self.rtx:
            return
        trt, runtime = self.trt, self.runtime
        with file.open("rb") as stream:
            header = stream.read(runtime.engine_header_size)
        validity, found = runtime.get_engine_validity(header)
        # How much memory there is was looked at before, with what streaming and staging save.
        memory = trt.EngineInvalidityDiagnostics.INSUFFICIENT_GPU_MEMORY.value
        if validity != trt.EngineValidity.INVALID or found == memory:
            return
        names = [name for name, bit in trt.EngineInvalidityDiagnostics.__members__.items() if found & bit.value]
        said = ", ".join(names).lower().replace("_", " ") or self.log.last_error or "it gave no reason"
        raise BundleError(f"{self.title} cannot run the plan {file}: {said}; build the bundle's engines again")


class Engine:
    """One plan: on the device, or known to the runtime without its weights, or only a file.

    Loading reads the plan piece by piece, never whole. With `defer` the engine stays when its weights go, and so do
    its context and its compiled kernels; TensorRT-RTX alone can do that, and not for engines with weight streaming.
    """

    def __init__(
        self, package: TensorRT, device: Device, arena: Arena, name: str, spec: EngineSpec, plan: Path,
        *, kernels: KernelStore | None, budget: int | None, defer: bool,
    ) -> None:  # fmt: skip
        """Load nothing yet.

        Args:
            package: what reads the plan.
            device: where it runs.
            arena: memory for its activations.
            name: of the stage.
            spec: of the stage, to compare with the plan.
            plan: the file.
            kernels: store of compiled kernels, with TensorRT-RTX.
            budget: bytes of weights to keep on the device; None for all.
            defer: keep everything but the weights when unloaded.
        """
        self.package, self.device, self.arena, self.name, self.spec, self.plan = (
            package, device, arena, name, spec, plan,
        )  # fmt: skip
        self.kernels, self.budget, self.defer = kernels, budget, defer
        self.captures = Captures(device)
        self.engine = self.config = self.context = self.reader = None
        self._forget()

    def load(self) -> None:
        """Bring the engine and its weights to the device; RuntimeError if TensorRT cannot."""
        if self.engine is None:
            self._deserialize()
            self._make_context()
        if self.defer:
            reader = _plan_reader(self.package.trt, self.plan)
            with reader.file:
                done = self.engine.load_weights_async(reader, self.device.stream)
                self.device.synchronize()
            self._check_read(reader)
            if not done:
                raise self.package.failure(f"loading the weights of {self.name}")

    def unload(self) -> None:
        """Take the weights off the device. What a failed load left is taken away as well."""
        if self.engine is None:
            return
        if self.defer and self.context is not None:
            if self.engine.weights_loaded and not self.engine.unload_weights():
                raise self.package.failure(f"unloading the weights of {self.name}")
        else:
            self.drop()

    def drop(self) -> None:
        """Free everything, the context before its engine."""
        self.captures.clear()
        self._forget()
        self.context = None
        self.config = None
        self.engine = None
        if self.reader is not None:
            self.reader.file.close()
        self.reader = None

    def bind(self, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Set the inputs' shapes; the output's shape.

        Raises:
            RuntimeError: TensorRT refuses the shapes.
            CudaError: there is no memory for the activations.
        """
        context, engine = self.context, self.engine
        if shapes != self.shapes:
            self.shapes = {}
            for name, shape in shapes.items():
                if not context.set_input_shape(name, shape):
                    raise self.package.failure(f"taking {name} of the shape {list(shape)} for {self.name}")
            if missing := context.infer_shapes():
                raise RuntimeError(f"{self.name} lacks the shapes of {', '.join(missing)}")
            # 0 is an error or nothing needed; the engine knows what suffices for every shape.
            self.scratch = context.update_device_memory_size_for_shapes() or engine.device_memory_size_v2
            self.arena_place = None
            self.shapes = dict(shapes)
        self.arena.reserve(self.scratch)
        if self.arena_place != (self.arena.address, self.arena.size):
            context.set_device_memory(self.arena.address, self.arena.size)
            self.arena_place = (self.arena.address, self.arena.size)
        return tuple(context.get_tensor_shape(self.spec.outputs[0].name))

    def place(self, addresses: dict[str, int]) -> None:
        """Set where inputs and output lie on the device."""
        context = self.context
        for name, address in addresses.items():
            if self.addresses.get(name) != address:
                if not context.set_tensor_address(name, address):
                    raise self.package.failure(f"taking the address of {name} for {self.name}")
                self.addresses[name] = address

    def run(self) -> None:
        """Start the engine on the stream."""
        if self.package.rtx or self.budget is not None:
            # TensorRT-RTX captures by itself. Streamed weights are not worth it: copies take the time, not launches.
            done = self._enqueue()
        else:
            shapes = tuple(sorted(self.shapes.items()))
            done = self.captures.run(shapes, (tuple(sorted(self.addresses.items())), self.arena_place), self._enqueue)
        if not done:
            raise self.package.failure(f"running {self.name}")

    def _enqueue(self) -> bool:
        return self.context.execute_async_v3(self.device.stream)

    def _deserialize(self) -> None:
        package, runtime = self.package, self.package.runtime
        runtime.defer_weights_loading = self.defer
        self.reader = _plan_reader(package.trt, self.plan)
        engine = runtime.deserialize_cuda_engine(self.reader)
        self._check_read(self.reader)
        if engine is None:
            raise package.failure(f"loading {self.name} from {self.plan}")
        self.engine = engine
        self._check_tensors(engine)
        if self.budget is not None:
            # Before the first context. What cannot be streamed is on the device beside TensorRT's budget.
            streamable = engine.streamable_weights_size
            fixed = max(0, self.plan.stat().st_size - streamable)
            engine.weight_streaming_budget_v2 = min(max(0, self.budget - fixed), streamable)

    def _make_context(self) -> None:
        trt, engine = self.package.trt, self.engine
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self.package.rtx:
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            if self.kernels is not None:
                self.kernels.attach(config)
        # The context needs its configuration as long as it lives.
        self.config = config
        self.context = engine.create_execution_context(config)
        if self.context is None:
            raise self.package.failure(f"preparing {self.name}")
        self._forget()

    def _forget(self) -> None:
        """What was set belongs to a context; a new one knows nothing."""
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.arena_place: tuple[int, int] | None = None
        self.scratch = 0

    def _check_tensors(self, engine: Any) -> None:
        trt = self.package.trt
        dtypes = {"float32": trt.DataType.FLOAT, "int64": trt.DataType.INT64, "uint8": trt.DataType.UINT8}
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        wanted = {tensor.name: dtypes[tensor.dtype] for tensor in (*self.spec.inputs, *self.spec.outputs)}
        if sorted(names) != sorted(wanted):
            raise BundleError(f"the plan {self.plan} has the tensors {sorted(names)}, the manifest {sorted(wanted)}")
        for name, dtype in wanted.items():
            if (found := engine.get_tensor_dtype(name)) != dtype:
                raise BundleError(f"the plan {self.plan} has {name} as {found}, the manifest as {dtype}")

    def _check_read(self, reader: Any) -> None:
        if reader.problem is not None:
            raise RuntimeError(f"reading the plan {self.plan} failed: {reader.problem}") from reader.problem


def _plan_reader(trt: Any, plan: Path) -> Any:
    """Reads a plan for TensorRT. Its methods must not raise: TensorRT calls them from where nothing may be raised."""

    class PlanReader(trt.IStreamReaderV2):
        def __init__(self) -> None:
            trt.IStreamReaderV2.__init__(self)
            self.file: io.FileIO = plan.open("rb", buffering=0)
            self.problem: OSError | None = None

        def read(self, num_bytes: int, stream: int) -> bytes:
            try:
                return self.file.read(min(num_bytes, CHUNK)) or b""
            except OSError as error:
                self.problem = error
                return b""

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


def _log(trt: Any) -> Any:
    """TensorRT's messages, all for debugging: the last error is kept for whoever raises it."""
    logger = logging.getLogger(__name__)

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = ""

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.last_error = msg
            logger.debug("%s", msg)

    return Log()
