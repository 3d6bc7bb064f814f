"""A stand-in for ``tensorrt_rtx`` and ``tensorrt`` whose engines are Python functions on the fake GPU's memory.

A plan is a JSON text: ``{"stage": name, "weights": bytes, "profiles": [{input: [smallest, best, largest shape]}]}``.
The classes have TensorRT's names and only what the runtime uses; a test compares names, parameters, results and values
with the real package. They refuse what TensorRT refuses, in its way: False, None, or a message in the log. They check
what it leaves undefined: scratch memory that is too small or freed, weights that are not there, weights that are still
being copied, graphs that are launched after their context has changed.
"""

import json
import sys
from types import SimpleNamespace

from support.engines import fake_enums
from support.engines.fake_context import IExecutionContext, IRuntimeConfig
from support.engines.fake_cuda import STREAM
from support.engines.fake_enums import DataType, EngineValidity, SeekPosition, Severity


class ILogger:
    Severity = Severity


class IStreamReaderV2:
    pass


def call_back(method, *arguments, otherwise=None):
    """Call a method of the runtime as the bindings do: what it raises is printed, and the call goes on."""
    try:
        return method(*arguments)
    except BaseException as error:
        print(f"[ERROR] Exception caught in {method.__name__}(): {error!r}", file=sys.stderr)
        return otherwise


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
            return self.refuse("out of memory for weights")
        self.memory = memory
        return True

    def refuse(self, message):
        call_back(self.runtime.logger.log, Severity.ERROR, message)
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

    def get_device_memory_size_for_profile_v2(self, profile_index) -> int:
        assert 0 <= profile_index < len(self.profiles)
        return self.module.scratch * (profile_index + 1) + self.weight_streaming_scratch_memory_size

    @property
    def device_memory_size_v2(self):
        return self.get_device_memory_size_for_profile_v2(len(self.profiles) - 1)

    @property
    def num_io_tensors(self):
        return len(self.module.stages[self.stage].inputs) + 1

    def get_tensor_name(self, index) -> str:
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
        """The bindings drop what `setWeightStreamingBudgetV2` returns: a refusal changes nothing."""
        if self.contexts or budget < 0 or "budget" in self.module.refused:
            self.refuse("the budget cannot be set")
            return
        self.budget = min(budget, self.streamable_weights_size)
        self.module.cudart.cudaFree(self.memory)
        self.memory = self.module.cudart.cudaMalloc(self.size // 10 + self.budget)[1]

    @property
    def weight_streaming_scratch_memory_size(self):
        return self.module.streaming_scratch if self.budget < self.streamable_weights_size else 0

    def create_runtime_config(self) -> IRuntimeConfig:
        return None if "config" in self.module.refused else IRuntimeConfig(self.module)

    def create_execution_context(self, runtime_config) -> IExecutionContext:
        assert self.module.cudart.device == self.device
        if "context" in self.module.refused:
            self.refuse("no context")
            return None
        self.contexts += 1
        context = IExecutionContext(self, runtime_config)
        if runtime_config.cache is not None:
            runtime_config.cache.content += b"kernels:" if not runtime_config.cache.content else b""
            runtime_config.cache.content += self.stage.encode() + b";"
        return context

    def load_weights_async(self, stream_reader, stream) -> bool:
        assert stream == STREAM + self.device
        if not self.deferred or self.memory is not None:
            return False
        text = _drain(stream_reader)
        if not text or json.loads(text)["stage"] != self.stage:
            return False
        return self.take()

    def unload_weights(self) -> bool:
        assert self.module.rtx, "TensorRT cannot unload weights"
        assert self.module.cudart.device == self.device
        assert self.device not in self.module.cudart.busy, "weights are freed while an engine may run"
        if "unload" in self.module.refused or not self.deferred or self.memory is None:
            return False
        self.module.cudart.cudaFree(self.memory)
        self.memory = None
        return True


class Runtime:
    def __init__(self, module, logger):
        self.module, self.logger = module, logger
        self._deferred = False
        self.engine_header_size = 64

    @property
    def defer_weights_loading(self):
        return self._deferred

    @defer_weights_loading.setter
    def defer_weights_loading(self, value):
        assert self.module.rtx, "TensorRT 10 has no such attribute"
        self._deferred = value

    def get_engine_validity(self, buffer) -> tuple:
        assert self.module.rtx and len(buffer) <= self.engine_header_size
        return self.module.validity

    def deserialize_cuda_engine(self, stream_reader_v2) -> ICudaEngine:
        text = _drain(stream_reader_v2)
        self.module.loads.append(len(text))
        try:
            plan = json.loads(text)
        except ValueError:
            call_back(self.logger.log, Severity.ERROR, "the magic number does not match")
            return None
        engine = ICudaEngine(self, plan, self._deferred)
        if not self._deferred and not engine.take():
            return None
        if not self._deferred:  # not on the stream of the runs, which this call does not know
            self.module.cudart.null_stream.add(engine.device)
        return engine


def _drain(reader):
    """All bytes, read in the ways that a stream may be read; b"" if that fails."""
    if not all(call_back(reader.seek, 0, where) for where in (SeekPosition.END, SeekPosition.SET)):
        return b""
    start = call_back(reader.read, 4, 0, otherwise=b"")
    call_back(reader.seek, -len(start), SeekPosition.CUR)
    pieces = []
    while piece := call_back(reader.read, 1 << 30, 0, otherwise=b""):
        pieces.append(bytes(piece))
    return b"".join(pieces)


class FakeTensorRT:
    """The module. `stages` says what engines compute."""

    ILogger, IStreamReaderV2, SeekPosition, EngineValidity = ILogger, IStreamReaderV2, SeekPosition, EngineValidity
    EngineInvalidityDiagnostics, DataType = fake_enums.EngineInvalidityDiagnostics, DataType
    CudaGraphStrategy = fake_enums.CudaGraphStrategy
    DynamicShapesKernelSpecializationStrategy = fake_enums.DynamicShapesKernelSpecializationStrategy
    ExecutionContextAllocationStrategy = fake_enums.ExecutionContextAllocationStrategy

    def __init__(self, cudart, stages, rtx=True, version="1.7.1.116"):
        self.cudart, self.stages, self.rtx, self.__version__ = cudart, stages, rtx, version
        self.validity = (EngineValidity.VALID, 0)
        self.whole_scratch = False
        """Whether a context takes no less than what the largest profile needs; the documentation can be read so."""
        self.scratch = 4096
        """Bytes of the first profile; the second takes twice as many."""
        self.streaming_scratch = 0
        """Bytes for copies that an engine needs beside them when it streams weights."""
        self.fail_running = False
        self.refused = set()
        """Calls that TensorRT refuses."""
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
