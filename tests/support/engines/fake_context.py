"""Execution contexts of the fake TensorRT, which refuse what TensorRT refuses and check what it leaves undefined."""

import ctypes
from types import SimpleNamespace

import numpy as np
from support.engines.fake_cuda import STREAM
from support.engines.fake_enums import (
    CudaGraphStrategy,
    DynamicShapesKernelSpecializationStrategy,
    ExecutionContextAllocationStrategy,
)


class IHostMemory:
    """What `serialize` returns."""

    def __init__(self, content):
        self.content = content

    def __bytes__(self):
        return self.content


class IRuntimeCache:
    def __init__(self):
        self.content = b""
        self.fails = False

    def serialize(self) -> IHostMemory:
        return None if self.fails else IHostMemory(self.content)

    def deserialize(self, blob) -> bool:
        if not blob.startswith(b"kernels:"):
            return False
        self.content = blob
        return True


class IRuntimeConfig:
    """The settings that only TensorRT-RTX has are refused for TensorRT."""

    def __init__(self, module):
        self.strategy, self.cache, self.module = ExecutionContextAllocationStrategy.STATIC, None, module
        self.graphs, self.kernels = CudaGraphStrategy.DISABLED, DynamicShapesKernelSpecializationStrategy.LAZY

    def set_execution_context_allocation_strategy(self, strategy) -> None:
        self.strategy = strategy

    @property
    def cuda_graph_strategy(self):
        return self.graphs

    @cuda_graph_strategy.setter
    def cuda_graph_strategy(self, strategy):
        assert self.module.rtx
        self.graphs = strategy

    @property
    def dynamic_shapes_kernel_specialization_strategy(self):
        return self.kernels

    @dynamic_shapes_kernel_specialization_strategy.setter
    def dynamic_shapes_kernel_specialization_strategy(self, strategy):
        assert self.module.rtx
        self.kernels = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        assert self.module.rtx, "TensorRT has no runtime cache"
        return IRuntimeCache()

    def set_runtime_cache(self, cache) -> bool:
        if "cache" in self.module.refused:
            return False
        self.cache = cache
        return True


class IExecutionContext:
    def __init__(self, engine, config):
        self.engine, self.config = engine, config
        self.shapes, self.addresses, self.scratch = {}, {}, None
        self.history = []
        self.compiled = set()
        """Shapes that have run: what a background compilation has finished by the next time."""
        self.state = 0
        """Grows with every change that a captured graph does not survive."""
        self.flushed = -1
        """The state in which the context was last enqueued without a capture."""
        # As TensorRT's: the first context of an engine starts in profile 0, the others in none.
        self.active_optimization_profile = -1 if engine.contexts > 1 else 0
        # Not the context itself: that would keep the engine alive.
        engine.module.contexts.append(SimpleNamespace(stage=engine.stage, config=config, history=self.history))

    def set_optimization_profile_async(self, profile_index, stream_handle) -> bool:
        assert stream_handle == STREAM + self.engine.device, "another stream than the runs', which nothing orders"
        if not 0 <= profile_index < self.engine.num_optimization_profiles:
            return self.engine.refuse(f"profile {profile_index} does not exist")
        self._changed("profile", profile_index)
        self.active_optimization_profile = profile_index
        self.shapes = {}
        return True

    def set_input_shape(self, name, shape) -> bool:
        if self.active_optimization_profile < 0:
            return self.engine.refuse("no optimization profile is chosen")
        self._changed("shape", name, tuple(shape))
        smallest, _, largest = self.engine.profiles[self.active_optimization_profile][name]
        if not all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)):
            return self.engine.refuse(f"{list(shape)} is not in {smallest} to {largest}")
        self.shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        if "infer_shapes" in self.engine.module.refused:
            raise RuntimeError("Shape inference failed")
        return [name for name in self.engine.module.stages[self.engine.stage].inputs if name not in self.shapes]

    def get_tensor_shape(self, name):
        return self.engine.module.stages[self.engine.stage].shape(self.shapes)

    def set_device_memory(self, memory, size) -> None:
        """Returns nothing: a refusal is logged, and what was set before stays."""
        wanted = self.engine.get_device_memory_size_for_profile_v2(self.active_optimization_profile)
        if self.engine.module.whole_scratch:
            wanted = self.engine.device_memory_size_v2
        if not memory or memory % 256 or size < wanted or "scratch" in self.engine.module.refused:
            self.engine.refuse(f"{size} bytes at {memory} are not the {wanted} that are needed")
            return
        self._changed("scratch", memory, size)
        self.scratch = (memory, size)

    def set_tensor_address(self, name, memory) -> bool:
        if "address" in self.engine.module.refused or memory % 256:
            return self.engine.refuse(f"the address {memory} of {name} is not aligned")
        self._changed("address", name, memory)
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle) -> bool:
        module, cudart = self.engine.module, self.engine.module.cudart
        stage = module.stages[self.engine.stage]
        assert cudart.device == self.engine.device, "runs on another device than it was loaded on"
        assert stream_handle == STREAM + cudart.device
        assert self.config.strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        assert self.engine.weights_loaded, f"{self.engine.stage} runs without its weights"
        assert self.engine.device not in cudart.null_stream, (
            "runs before what was copied on the NULL stream has arrived"
        )
        if self.infer_shapes() or set(self.addresses) != {*stage.inputs, stage.output}:
            return self.engine.refuse("shapes or addresses are not set")
        wanted = self.engine.get_device_memory_size_for_profile_v2(self.active_optimization_profile)
        if wanted and self.scratch is None:
            return self.engine.refuse("no device memory")
        if wanted:
            assert self.scratch[1] >= wanted
            cudart.check(self.scratch[0], wanted)
        if module.fail_running:
            return self.engine.refuse("an illegal instruction")
        module.runs.append(self.engine.stage)
        work = self._work(stage, dict(self.shapes), dict(self.addresses))
        if cudart.capturing is None:
            self.flushed = self.state
            work()
        else:
            assert self.flushed == self.state, "captured before an enqueue has brought the context up to date"
            cudart.capturing.append(self._replayed(work, self.state))
        return True

    def _changed(self, *entry):
        self.history.append(entry)
        self.state += 1

    def _replayed(self, work, state):
        """A captured graph is valid for the shapes, addresses and scratch memory that it was captured with only."""

        def replay():
            assert state == self.state, "a graph is launched after its context has changed"
            work()

        return replay

    def _work(self, stage, shapes, addresses):
        cudart, key = self.engine.module.cudart, tuple(sorted(shapes.items()))
        kernels = DynamicShapesKernelSpecializationStrategy
        lazy = self.engine.module.rtx and self.config.kernels == kernels.LAZY

        def work():
            arrays = {}
            for name, dtype in stage.inputs.items():
                size = int(np.prod(shapes[name])) * np.dtype(dtype).itemsize
                cudart.check(addresses[name], size)
                data = ctypes.string_at(addresses[name], size)
                arrays[name] = np.frombuffer(data, dtype).reshape(shapes[name])
            result = np.ascontiguousarray(stage.function(**arrays))
            if lazy and key not in self.compiled and result.dtype == np.float32:
                result = np.nextafter(result, np.float32(np.inf))  # a generic kernel rounds in another way
            self.compiled.add(key)
            cudart.check(addresses[stage.output], result.nbytes)
            ctypes.memmove(addresses[stage.output], result.ctypes.data, result.nbytes)

        return work
