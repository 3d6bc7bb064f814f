"""One stage's plan as TensorRT runs it: engine, weights, and a context for each profile that is used.

Kernels for the shapes of a call are compiled before the call runs (`DynamicShapesKernelSpecializationStrategy.EAGER`).
TensorRT-RTX's own choice is LAZY: a generic kernel runs until a better one has been compiled in the background, so
that one seed gives different pixels, depending on when that ends. NONE would run the generic kernels for ever. With
EAGER ("in a blocking fashion", says the enumeration's documentation) the first call of a new shape waits for the
compiler, once: the kernels are kept in a file. And no thread is left compiling, and logging into Python, when an engine
is freed.

Objects of TensorRT are called what they are: `engine`, `context`, `config`, `runtime`; a test compares what is used of
them with the package.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from runtime.bundle.graph_specs import EngineSpec
from runtime.errors import BackendError, BundleError
from runtime.tensorrt.buffers import Arena
from runtime.tensorrt.context import Context
from runtime.tensorrt.cuda import Device
from runtime.tensorrt.memory_plan import STREAMING_SCRATCH
from runtime.tensorrt.package import TensorRT


class KernelStore(Protocol):
    """Where compiled kernels are kept; see `runtime.tensorrt.kernel_cache`."""

    def attach(self, config: Any) -> None:
        """Let contexts that are made with this runtime configuration use and extend the store."""
        ...


class Engine:
    """One plan: on the device, or known to the runtime without its weights, or only a file.

    Loading reads the plan piece by piece, never whole. With `defer` the engine stays when its weights go, and so do
    its contexts and its compiled kernels; TensorRT-RTX alone can do that, and not for engines with weight streaming.
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
        cuda_graphs: bool = True,
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
            cuda_graphs: launch it as a CUDA graph where that is possible; the numbers are the same without.
        """
        self.package, self.device, self.arena, self.name, self.spec, self.plan = (
            package,
            device,
            arena,
            name,
            spec,
            plan,
        )
        self.kernels, self.budget, self.defer, self.cuda_graphs = kernels, budget, defer, cuda_graphs
        self.contexts: dict[int, Context] = {}
        """By profile; made when one is first used."""
        # TensorRT's objects have no types; None until they are loaded.
        self.engine: Any = None
        self.config: Any = None
        self.reader: Any = None

    def load(self) -> None:
        """Bring the engine and its weights to the device; RuntimeError if TensorRT cannot."""
        if self.engine is None:
            self._deserialize()
            self._configure()
            # TensorRT does not know the stream of the runs yet; what it copied need not have arrived.
            self.device.synchronize_null_stream()
            if len(self.spec.profiles) == 1:  # nothing to wait for: its kernels are compiled now, not in a call
                self.context(0)
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
        if self.defer and self.engine is not None and (self.contexts or self.engine.weights_loaded):
            # A call that failed half-way may still be running; weights must not go meanwhile (`unload_weights`).
            self.device.synchronize()
            if self.engine.weights_loaded and not self.engine.unload_weights():
                failure = self.package.failure(f"unloading the weights of {self.name}")
                self.drop()  # which frees them too
                raise failure
        else:
            self.drop()

    def drop(self) -> None:
        """Free everything, the contexts before their engine. Everything is tried, whatever fails."""
        contexts, self.contexts = self.contexts, {}
        with ExitStack() as steps:  # the last one first
            if self.reader is not None:
                steps.callback(self.reader.file.close)
            steps.callback(self._forget)
            for one in contexts.values():
                steps.callback(one.drop)

    def _forget(self) -> None:
        self.config = None
        self.engine = None
        self.reader = None

    def context(self, profile: int) -> Context:
        """The context of a profile of the loaded engine; BackendError if TensorRT cannot make it."""
        if profile not in self.contexts:
            engine = self.engine
            made = engine.create_execution_context(self.config)
            if made is None:
                raise self.package.failure(f"preparing {self.name}")
            # TensorRT-RTX captures by itself. Streamed weights are not worth it: copies take the time, not launches.
            self.contexts[profile] = Context(
                self.package,
                self.device,
                self.arena,
                self.name,
                made,
                profile=profile,
                needed=engine.get_device_memory_size_for_profile_v2(profile),
                most=engine.device_memory_size_v2,
                captured=self.cuda_graphs and not self.package.rtx and self.budget is None,
            )
        return self.contexts[profile]

    def _deserialize(self) -> None:
        package, runtime = self.package, self.package.runtime
        if self.package.rtx:  # TensorRT knows it from some 11 on only
            runtime.defer_weights_loading = self.defer
        self.reader = package.open_plan(self.plan)
        engine = runtime.deserialize_cuda_engine(self.reader)
        self._check_read(self.reader)
        if engine is None:
            raise package.failure(f"loading {self.name} from {self.plan}")
        self.engine = engine
        self._check_tensors(engine)
        if self.budget is not None:
            self._stream_weights(engine, self.budget)

    def _stream_weights(self, engine: Any, budget: int) -> None:
        """Keep `budget` bytes of weights on the device, less if the copies of the others need more than was planned.

        Before the first context. What cannot be streamed is on the device beside TensorRT's own budget. The copies'
        memory depends on the budget (`weight_streaming_scratch_memory_size`); it is a part of the scratch memory.
        """
        streamable = engine.streamable_weights_size
        fixed = max(0, self.plan.stat().st_size - streamable)
        wanted = min(max(0, budget - fixed), streamable)
        self._set_budget(engine, wanted)
        more = engine.weight_streaming_scratch_memory_size - STREAMING_SCRATCH
        if more > 0:
            self._set_budget(engine, max(0, wanted - more))

    def _set_budget(self, engine: Any, wanted: int) -> None:
        """The bindings return nothing when they set it; so it is read back."""
        engine.weight_streaming_budget_v2 = wanted
        if (found := engine.weight_streaming_budget_v2) != wanted:
            raise self.package.failure(f"keeping {wanted} bytes of the weights of {self.name} (it keeps {found})")

    def _configure(self) -> None:
        trt, engine = self.package.trt, self.engine
        config = engine.create_runtime_config()
        if config is None:
            raise self.package.failure(f"configuring {self.name}")
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self.package.rtx:
            strategies = trt.CudaGraphStrategy
            config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE if self.cuda_graphs else strategies.DISABLED
            kernels = trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = kernels.EAGER
            if self.kernels is not None:
                self.kernels.attach(config)
        # The contexts need their configuration as long as they live.
        self.config = config

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
        if (profiles := engine.num_optimization_profiles) != len(self.spec.profiles):
            raise BundleError(f"the plan {self.plan} has {profiles} profiles, the manifest {len(self.spec.profiles)}")

    def _check_read(self, reader: Any) -> None:
        if reader.problem is not None:
            raise BackendError(f"reading the plan {self.plan} failed: {reader.problem}") from reader.problem
