"""A stand-in for ``tensorrt_rtx`` and ``tensorrt`` whose engines are Python functions on the fake GPU's memory.

A plan is a JSON text: ``{"stage": name, "weights": bytes, "profiles": [{input: [smallest, best, largest shape]}]}``.
The classes have TensorRT's names and only what the runtime uses; a test compares them with the real package. They
check what TensorRT leaves undefined: shapes and addresses that were not set, scratch memory that is too small or freed,
weights that are not there, a profile that was not chosen or that another context has.
"""

import ctypes
import json
from enum import IntEnum
from types import SimpleNamespace

import numpy as np
from support.engines.fake_cuda import STREAM


class SeekPosition(IntEnum):
    SET, CUR, END = 0, 1, 2


class EngineValidity(IntEnum):
    VALID, SUBOPTIMAL, INVALID = 0, 1, 2


class EngineInvalidityDiagnostics(IntEnum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    INSUFFICIENT_GPU_MEMORY = 16


class CudaGraphStrategy(IntEnum):
    DISABLED, WHOLE_GRAPH_CAPTURE = 0, 1


class ExecutionContextAllocationStrategy(IntEnum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = 0, 1, 2


class DataType(IntEnum):
    FLOAT, INT64, UINT8, BF16 = 0, 8, 6, 7


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = 0, 1, 2, 3, 4


class IStreamReaderV2:
    pass


class IRuntimeCache:
    def __init__(self):
        self.content = b""
        self.alive = True

    def serialize(self):
        return self.content

    def deserialize(self, blob):
        if not blob.startswith(b"kernels:"):
            return False
        self.content = blob
        return True


class IRuntimeConfig:
    def __init__(self, rtx):
        self.strategy, self.cache, self.rtx = None, None, rtx
        self.cuda_graph_strategy = None

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        assert self.rtx, "TensorRT has no runtime cache"
        return IRuntimeCache()

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class IExecutionContext:
    def __init__(self, engine, config):
        self.engine, self.config = engine, config
        self.shapes, self.addresses, self.scratch = {}, {}, (0, 0)
        self.history = []
        # As TensorRT's: the first context of an engine starts in profile 0, the others in none.
        self.active_optimization_profile = -1 if engine.contexts > 1 else 0
        # Not the context itself: that would keep the engine alive.
        engine.module.contexts.append(SimpleNamespace(stage=engine.stage, config=config, history=self.history))

    def set_optimization_profile_async(self, profile_index, stream_handle):
        assert stream_handle == STREAM + self.engine.device, "another stream than the runs', which nothing orders"
        if not 0 <= profile_index < self.engine.num_optimization_profiles:
            return self.engine.refuse(f"profile {profile_index} does not exist")
        self.history.append(("profile", profile_index))
        self.active_optimization_profile = profile_index
        self.shapes = {}
        return True

    def set_input_shape(self, name, shape):
        assert self.active_optimization_profile >= 0, "shapes are set before the profile"
        self.history.append(("shape", name, tuple(shape)))
        smallest, _, largest = self.engine.profiles[self.active_optimization_profile][name]
        if not all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)):
            return self.engine.refuse(f"{list(shape)} is not in {smallest} to {largest}")
        self.shapes[name] = tuple(shape)
        return True

    def infer_shapes(self):
        return [name for name in self.engine.module.stages[self.engine.stage].inputs if name not in self.shapes]

    def get_tensor_shape(self, name):
        return self.engine.module.stages[self.engine.stage].shape(self.shapes)

    def update_device_memory_size_for_shapes(self):
        return self.engine.module.scratch_per_row * int(np.prod(next(iter(self.shapes.values()))))

    def set_device_memory(self, memory, size):
        self.history.append(("scratch", memory, size))
        self.scratch = (memory, size)

    def set_tensor_address(self, name, memory):
        self.history.append(("address", name, memory))
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        cudart, stage = self.engine.module.cudart, self.engine.module.stages[self.engine.stage]
        assert cudart.device == self.engine.device, "runs on another device than it was loaded on"
        assert (
            stream_handle == STREAM + cudart.device
            and self.config.strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        )
        assert self.engine.weights_loaded, f"{self.engine.stage} runs without its weights"
        most = self.engine.get_device_memory_size_for_profile_v2(self.active_optimization_profile)
        wanted = self.update_device_memory_size_for_shapes() or most
        assert self.scratch[1] >= wanted
        cudart.check(self.scratch[0], wanted)
        if self.engine.module.fail_running:
            self.engine.runtime.logger.log(ILogger.Severity.ERROR, "an illegal instruction")
            return False
        shapes, addresses = dict(self.shapes), dict(self.addresses)

        def work():
            arrays = {}
            for name, dtype in stage.inputs.items():
                size = int(np.prod(shapes[name])) * np.dtype(dtype).itemsize
                cudart.check(addresses[name], size)
                data = ctypes.string_at(addresses[name], size)
                arrays[name] = np.frombuffer(data, dtype).reshape(shapes[name])
            result = np.ascontiguousarray(stage.function(**arrays))
            cudart.check(addresses[stage.output], result.nbytes)
            ctypes.memmove(addresses[stage.output], result.ctypes.data, result.nbytes)

        self.engine.module.runs.append(self.engine.stage)
        if cudart.capturing is None:
            work()
        else:
            cudart.capturing.append(work)
        return True


class ICudaEngine:
    def __init__(self, runtime, plan, deferred):
        self.runtime, self.module, self.stage, self.size = runtime, runtime.module, plan["stage"], plan["weights"]
        self.profiles = plan["profiles"]
        self.streamable_weights_size = self.size - self.size // 10
        self.budget, self.memory, self.deferred = self.streamable_weights_size, None, deferred
        self.contexts, self.device = 0, self.module.cudart.device

    def take(self):
        """Device memory for the weights; False if there is none left."""
        assert self.module.cudart.device == self.device
        error, memory = self.module.cudart.cudaMalloc(self.size)
        if error:
            self.runtime.logger.log(ILogger.Severity.ERROR, "out of memory for weights")
            return False
        self.memory = memory
        return True

    def refuse(self, message):
        self.runtime.logger.log(ILogger.Severity.ERROR, message)
        return False

    def __del__(self):
        if self.memory is not None:
            self.module.cudart.cudaFree(self.memory)

    @property
    def weights_loaded(self):
        return self.memory is not None

    @property
    def num_optimization_profiles(self):
        return len(self.profiles)

    def get_device_memory_size_for_profile_v2(self, profile_index):
        assert 0 <= profile_index < len(self.profiles)
        return 4096 * (profile_index + 1)

    @property
    def num_io_tensors(self):
        return len(self.module.stages[self.stage].inputs) + 1

    def get_tensor_name(self, index):
        stage = self.module.stages[self.stage]
        return [*stage.inputs, stage.output][index]

    def get_tensor_dtype(self, name):
        stage = self.module.stages[self.stage]
        names = {"float32": DataType.FLOAT, "int64": DataType.INT64, "uint8": DataType.UINT8}
        return names.get(stage.inputs.get(name, stage.dtype), DataType.BF16)

    @property
    def weight_streaming_budget_v2(self):
        return self.budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget):
        assert not self.contexts and 0 <= budget <= self.streamable_weights_size
        self.budget = budget
        self.module.cudart.cudaFree(self.memory)
        self.memory = self.module.cudart.cudaMalloc(self.size // 10 + budget)[1]

    def create_runtime_config(self):
        return IRuntimeConfig(self.module.rtx)

    def create_execution_context(self, runtime_config):
        self.contexts += 1
        assert self.module.cudart.device == self.device
        context = IExecutionContext(self, runtime_config)
        if runtime_config.cache is not None:
            runtime_config.cache.content += b"kernels:" if not runtime_config.cache.content else b""
            runtime_config.cache.content += self.stage.encode() + b";"
        return context

    def load_weights_async(self, stream_reader, stream):
        assert self.deferred and self.memory is None and stream == STREAM + self.device
        if json.loads(_drain(stream_reader))["stage"] != self.stage:
            return False
        return self.take()

    def unload_weights(self):
        assert self.module.rtx, "TensorRT cannot unload weights"
        assert self.module.cudart.device == self.device
        self.module.cudart.cudaFree(self.memory)
        self.memory = None
        return True


class Runtime:
    def __init__(self, module, logger):
        self.module, self.logger = module, logger
        self._deferred = False
        self.engine_header_size = 16

    @property
    def defer_weights_loading(self):
        return self._deferred

    @defer_weights_loading.setter
    def defer_weights_loading(self, value):
        assert self.module.rtx, "TensorRT 10 has no such attribute"
        self._deferred = value

    def get_engine_validity(self, buffer):
        assert self.module.rtx and len(buffer) <= self.engine_header_size
        return self.module.validity

    def deserialize_cuda_engine(self, stream_reader_v2):
        text = _drain(stream_reader_v2)
        self.module.loads.append(len(text))
        try:
            plan = json.loads(text)
        except ValueError:
            self.logger.log(ILogger.Severity.ERROR, "the magic number does not match")
            return None
        engine = ICudaEngine(self, plan, self._deferred)
        return engine if self._deferred or engine.take() else None


def _drain(reader):
    """All bytes, read in the ways that a stream may be read."""
    assert reader.seek(0, SeekPosition.END) and reader.seek(0, SeekPosition.SET)
    start = reader.read(4, 0)
    assert reader.seek(-len(start), SeekPosition.CUR)
    pieces = []
    while piece := reader.read(1 << 30, 0):
        pieces.append(bytes(piece))
    return b"".join(pieces)


class FakeTensorRT:
    """The module. `stages` says what engines compute."""

    ILogger, IStreamReaderV2, SeekPosition, EngineValidity = ILogger, IStreamReaderV2, SeekPosition, EngineValidity
    EngineInvalidityDiagnostics, CudaGraphStrategy = EngineInvalidityDiagnostics, CudaGraphStrategy
    ExecutionContextAllocationStrategy, DataType = ExecutionContextAllocationStrategy, DataType

    def __init__(self, cudart, stages, rtx=True, version="1.7.1.116"):
        self.cudart, self.stages, self.rtx, self.__version__ = cudart, stages, rtx, version
        self.validity = (EngineValidity.VALID, 0)
        self.scratch_per_row = 8
        self.fail_running = False
        self.runs, self.loads, self.contexts = [], [], []

    def Runtime(self, logger):
        return Runtime(self, logger)


def plan_text(name, weights, spec):
    """The plan of a stage with `weights` bytes, as long as those, whose profiles are those of its `EngineSpec`."""
    profiles = [
        {
            tensor.name: [
                [getattr(profile.sizes[size], end) if isinstance(size, str) else size for size in tensor.shape]
                for end in ("minimum", "optimum", "maximum")
            ]
            for tensor in spec.inputs
        }
        for profile in spec.profiles
    ]
    return json.dumps({"stage": name, "weights": weights, "profiles": profiles}).ljust(weights)


def stage(function, inputs, output, shape, dtype="float32"):
    """What an engine computes: `inputs` are names and dtypes, `shape` gives the output's from the inputs' shapes."""
    return SimpleNamespace(function=function, inputs=inputs, output=output, shape=shape, dtype=dtype)
