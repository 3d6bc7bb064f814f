"""Memory, copies and graphs of one CUDA device. The only file that imports cuda (cuda-bindings).

The functions of `cudart`, which is the module ``cuda.bindings.runtime``, return a tuple: the error code, then the
results. Every one goes through `checked`.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

from runtime.errors import BackendError, ClosedError


@dataclass(frozen=True)
class Gpu:
    """One CUDA device."""

    index: int
    name: str
    capability: str
    """Compute capability, such as sm89."""
    driver: int
    """Newest CUDA version that the driver knows, such as 13000 for 13.0."""
    free: int
    """Bytes of device memory."""
    total: int


class MissingCudaError(BackendError):
    """cuda-bindings is not installed or cannot be loaded."""


class NoGpuError(BackendError):
    """There is no GPU that CUDA can use."""


class CudaError(BackendError):
    """A call of CUDA failed."""


def load_cudart() -> ModuleType:
    """The module ``cuda.bindings.runtime``; it holds the CUDA runtime itself and needs only the driver beside it."""
    try:
        from cuda.bindings import runtime as cudart
    except ImportError as error:
        raise MissingCudaError(
            f"cuda-bindings cannot be imported ({error}); install the extra 'rtx' (GeForce and RTX cards) or 'tensorrt'"
        ) from error
    return cast(ModuleType, cudart)


def checked(cudart: Any, action: str, result: tuple[Any, ...]) -> Any:
    """The value in what a function of `cudart` returned, None if it has none; CudaError names `action` otherwise."""
    error, *values = result
    if error != cudart.cudaError_t.cudaSuccess:
        raise CudaError(f"CUDA failed {action}: {error_text(cudart, error)}")
    return values[0] if values else None


def error_text(cudart: Any, error: Any) -> str:
    """CUDA's own words for an error code."""
    status, text = cudart.cudaGetErrorString(error)
    return text.decode() if status == cudart.cudaError_t.cudaSuccess else f"error {int(error)}"


def driver_problem(cudart: Any) -> str:
    """What is wrong with the NVIDIA driver, and what to do; "" if it serves.

    CUDA calls a missing driver and an old one the same, "driver version is insufficient". Without a driver
    cudaDriverGetVersion gives 0 (its docstring in cuda-bindings 13).
    """
    status, driver = cudart.cudaDriverGetVersion()
    if status == cudart.cudaError_t.cudaSuccess and not driver:
        return "no NVIDIA driver is installed"
    if cudart.cudaGetDeviceCount()[0] == cudart.cudaError_t.cudaErrorInsufficientDriver:
        return f"the NVIDIA driver, for CUDA {cuda_version(driver)}, is too old; update it"
    return ""


def cuda_version(number: int) -> str:
    """13.1 for CUDA's 13010."""
    return f"{number // 1000}.{number % 1000 // 10}"


def find_gpu(cudart: Any, index: int) -> Gpu:
    """The device with this index; NoGpuError says why there is none."""
    status, count = cudart.cudaGetDeviceCount()
    if status != cudart.cudaError_t.cudaSuccess or not count:
        said = error_text(cudart, status) if status != cudart.cudaError_t.cudaSuccess else "it counts no device"
        raise NoGpuError(f"this machine has no NVIDIA GPU that CUDA can use ({driver_problem(cudart) or said})")
    if index >= count:
        raise NoGpuError(f"this machine has {count} CUDA device{'s' * (count > 1)}, and there is no cuda:{index}")
    try:
        checked(cudart, f"choosing cuda:{index}", cudart.cudaSetDevice(index))
        properties = checked(cudart, f"reading cuda:{index}", cudart.cudaGetDeviceProperties(index))
        driver = checked(cudart, "reading the driver's version", cudart.cudaDriverGetVersion())
        status, free, total = cudart.cudaMemGetInfo()
        checked(cudart, "asking for free memory", (status,))
    except CudaError as error:
        raise NoGpuError(f"the GPU cuda:{index} cannot be used: {error}") from error
    capability = f"sm{properties.major}{properties.minor}"
    return Gpu(index, properties.name.decode(), capability, driver, free, total)


class Device:
    """One CUDA device and the one stream that all work goes through. All sizes are bytes, all addresses integers.

    Engines, buffers and scratch memory of a device are shared by all its graphs, so a thread holds `lock` from filling
    the inputs of a call until its result has been read.
    """

    def __init__(self, cudart: Any, index: int) -> None:
        self.cudart, self.index = cudart, index
        self.lock = threading.RLock()  # freeing may begin anywhere, also in a thread that holds it
        self.closed = False
        self._call("choosing the device", cudart.cudaSetDevice(index))
        # TensorRT synchronises needlessly on the default stream.
        self._stream = self._call("making a stream", cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return int(self._stream)

    def activate(self) -> None:
        """Make this the calling thread's device; threads start with device 0. ClosedError after `close`."""
        if self.closed:
            raise ClosedError("the pipeline was closed; load the bundle again")
        self._call("choosing the device", self.cudart.cudaSetDevice(self.index))

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this the calling thread's device for a while; what frees memory may run in any thread."""
        before = self._call("asking for the device", self.cudart.cudaGetDevice())
        self.activate()
        try:
            yield
        finally:
            self.cudart.cudaSetDevice(before)

    def free_bytes(self) -> int:
        """Device memory that nobody has taken."""
        status, free, _ = self.cudart.cudaMemGetInfo()
        self._call("asking for free memory", (status,))
        return int(free)

    def allocate(self, size: int) -> int:
        """Address of new device memory; CUDA aligns it to 256 bytes."""
        status, *address = self.cudart.cudaMalloc(size)
        if status == self.cudart.cudaError_t.cudaErrorMemoryAllocation:
            raise CudaError(
                f"out of device memory: {size / 1e9:.2f} GB were wanted and {self.free_bytes() / 1e9:.2f} GB are free; "
                "close other programs that use the GPU, choose --memory staged, or make smaller pictures"
            )
        return int(self._call(f"allocating {size} bytes", (status, *address)))

    def release(self, address: int) -> None:
        """Give device memory back."""
        self._call("freeing memory", self.cudart.cudaFree(address))

    def pin(self, size: int) -> int:
        """Address of new page-locked host memory, which the GPU copies without a detour."""
        cudart = self.cudart
        return int(self._call(f"pinning {size} bytes", cudart.cudaHostAlloc(size, cudart.cudaHostAllocDefault)))

    def unpin(self, address: int) -> None:
        """Give page-locked host memory back."""
        self._call("unpinning memory", self.cudart.cudaFreeHost(address))

    def upload(self, device: int, host: int, size: int) -> None:
        """Start a copy from pinned host memory to the device."""
        kind = self.cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("copying to the GPU", self.cudart.cudaMemcpyAsync(device, host, size, kind, self._stream))

    def download(self, host: int, device: int, size: int) -> None:
        """Start a copy from the device to pinned host memory."""
        kind = self.cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("copying from the GPU", self.cudart.cudaMemcpyAsync(host, device, size, kind, self._stream))

    def synchronize(self) -> None:
        """Wait for everything that was started; errors of kernels are raised here."""
        self._call("running", self.cudart.cudaStreamSynchronize(self._stream))

    def synchronize_null_stream(self) -> None:
        """Wait for what was put on the NULL stream, which this one, made with cudaStreamNonBlocking, does not wait for.

        Not for the whole device: that would break what another pipeline is capturing on it.
        """
        self._call("loading", self.cudart.cudaStreamSynchronize(0))

    @contextmanager
    def idle_after_failure(self) -> Iterator[None]:
        """Wait for what was started before a failure: the next call fills the same buffers, or frees them."""
        try:
            yield
        except BaseException:
            self.cudart.cudaStreamSynchronize(self._stream)  # whose own failure would hide the first
            raise

    def capture(self, enqueue: Callable[[], bool]) -> Any | None:
        """Record what `enqueue` puts on the stream; None if that cannot be recorded. Nothing is left of a failure."""
        cudart, success = self.cudart, self.cudart.cudaError_t.cudaSuccess
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("starting a capture", cudart.cudaStreamBeginCapture(self._stream, mode))
        done, graph, executable = False, None, None
        try:
            try:
                done = enqueue()
            finally:
                # A capture must be ended even when it went wrong, else the stream stays unusable.
                status, graph = cudart.cudaStreamEndCapture(self._stream)
            if done and status == success:
                status, executable = cudart.cudaGraphInstantiate(graph, 0)
        finally:
            if graph is not None and int(graph):  # an invalidated capture gives none
                cudart.cudaGraphDestroy(graph)
        return executable if status == success else None

    def launch(self, executable: Any) -> None:
        """Start what was captured."""
        self._call("launching a graph", self.cudart.cudaGraphLaunch(executable, self._stream))

    def discard(self, executable: Any) -> None:
        """Free what was captured."""
        self._call("freeing a graph", self.cudart.cudaGraphExecDestroy(executable))

    def close(self) -> None:
        """Free the stream; nothing more can be run."""
        self.closed = True
        self._call("freeing the stream", self.cudart.cudaStreamDestroy(self._stream))

    def _call(self, action: str, result: tuple[Any, ...]) -> Any:
        return checked(self.cudart, action, result)
