"""One stage's plan as TensorRT runs it: engine, weights, context and what is bound to it.

Objects of TensorRT are called what they are: `engine`, `context`, `config`, `runtime`; a test compares what is used of
them with the package.
"""

from pathlib import Path
from typing import Any, Protocol

from runtime.bundle.manifest import EngineSpec
from runtime.errors import BackendError, BundleError
from runtime.tensorrt.buffers import Arena
from runtime.tensorrt.cuda import Device
from runtime.tensorrt.cuda_graphs import Captures
from runtime.tensorrt.package import TensorRT


class KernelStore(Protocol):
    """Where compiled kernels are kept; see `runtime.tensorrt.kernel_cache`."""

    def attach(self, config: Any) -> None:
        """Let contexts that are made with this runtime configuration use and extend the store."""
        ...


class Engine:
    """One plan: on the device, or known to the runtime without its weights, or only a file.

    Loading reads the plan piece by piece, never whole. With `defer` the engine stays when its weights go, and so do
    its context and its compiled kernels; TensorRT-RTX alone can do that, and not for engines with weight streaming.
    """

    def __init__(
        self,
        package: TensorRT,
        device: Device,
        arena: Arena,
        name: str,
        spec: EngineSpec,
        plan: Path,
        *,
        kernels: KernelStore | None,
        budget: int | None,
        defer: bool,
    ) -> None:
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
            package,
            device,
            arena,
            name,
            spec,
            plan,
        )
        self.kernels, self.budget, self.defer = kernels, budget, defer
        self.captures = Captures(device)
        # TensorRT's objects have no types; None until they are loaded.
        self.engine: Any = None
        self.config: Any = None
        self.context: Any = None
        self.reader: Any = None
        self.shapes: dict[str, tuple[int, ...]]
        self.addresses: dict[str, int]
        self.arena_place: tuple[int, int] | None
        self._forget()

    def load(self) -> None:
        """Bring the engine and its weights to the device; RuntimeError if TensorRT cannot."""
        if self.engine is None:
            self._deserialize()
            self._make_context()
        if self.defer:
            reader = self.package.open_plan(self.plan)
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
            BackendError: TensorRT refuses the shapes.
            CudaError: there is no memory for the activations.
        """
        context, engine = self.context, self.engine
        if shapes != self.shapes:
            self.shapes = {}
            for name, shape in shapes.items():
                if not context.set_input_shape(name, shape):
                    raise self.package.failure(f"taking {name} of the shape {list(shape)} for {self.name}")
            if missing := context.infer_shapes():
                raise BackendError(f"{self.name} lacks the shapes of {', '.join(missing)}")
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
        return bool(self.context.execute_async_v3(self.device.stream))

    def _deserialize(self) -> None:
        package, runtime = self.package, self.package.runtime
        runtime.defer_weights_loading = self.defer
        self.reader = package.open_plan(self.plan)
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
        self.shapes = {}
        self.addresses = {}
        self.arena_place = None
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
            raise BackendError(f"reading the plan {self.plan} failed: {reader.problem}") from reader.problem
