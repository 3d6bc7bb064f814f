"""TensorRT's enumerations, of which the runtime and its fakes use members. A test compares them with the package."""

from enum import IntEnum


class SeekPosition(IntEnum):
    SET, CUR, END = 0, 1, 2


class EngineValidity(IntEnum):
    VALID, SUBOPTIMAL, INVALID = 0, 1, 2


class EngineInvalidityDiagnostics(IntEnum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4
    OLD_CUDA_RUNTIME = 8
    INSUFFICIENT_GPU_MEMORY = 16
    MALFORMED_ENGINE = 32
    CUDA_ERROR = 64


class CudaGraphStrategy(IntEnum):
    DISABLED, WHOLE_GRAPH_CAPTURE = 0, 1


class DynamicShapesKernelSpecializationStrategy(IntEnum):
    LAZY, EAGER, NONE = 0, 1, 2


class ExecutionContextAllocationStrategy(IntEnum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = 0, 1, 2


class DataType(IntEnum):
    FLOAT, HALF, INT8, INT32, BOOL, UINT8, FP8, BF16, INT64, INT4, FP4, E8M0 = range(12)


class Severity(IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = 0, 1, 2, 3, 4
