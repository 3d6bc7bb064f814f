"""A stand-in for ``cuda.bindings.runtime`` with any number of GPUs, whose device memory is host memory.

It is strict where CUDA is dangerous: copies and frees of what was not allocated are errors, so is work on a device that
is not the thread's current one, and so is leaving memory behind, which tests look for in `allocated`. Every function
returns a tuple as cuda-bindings do.
"""

import ctypes
import threading
from enum import IntEnum
from types import SimpleNamespace


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


OK = (cudaError_t.cudaSuccess,)
STREAM = 7
"""Handle of the first GPU's stream; the next ones' follow."""


class FakeCudart:
    """The functions that the runtime uses."""

    cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode = cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode
    cudaStreamNonBlocking, cudaHostAllocDefault = 1, 0

    def __init__(self, total=24 * 10**9, gpus=1, capability=(8, 9)):
        self.total, self.gpus = total, gpus
        self.capability = capability
        """Of all GPUs; a dictionary for one of each."""
        self.thread = threading.local()
        self.used = 0
        """Bytes that are taken on each GPU beside what is really allocated here."""
        self.allocated, self.pinned = {}, {}
        self.owners = {}
        """The GPU of each address."""
        self.calls = []
        self.captured, self.graphs = {}, {}
        """Graphs by handle: as they were captured, and made executable."""
        self.capturable = self.instantiable = True
        self.driver = 13000
        """0 for none."""
        self.null_stream = set()
        """GPUs with copies on the NULL stream that nobody has waited for."""
        self.busy = set()
        """GPUs whose stream may have something to do."""

    # What tests look at

    def count(self, name):
        return sum(call == name for call, *_ in self.calls)

    def check(self, address, size):
        """The address is the start of live memory of the current device, of at least that size."""
        assert address in self.allocated, f"{address} is not device memory"
        assert self.owners[address] == self.device, f"memory of GPU {self.owners[address]} on GPU {self.device}"
        assert len(self.allocated[address]) - 256 >= size, "out of bounds"
        assert address % 256 == 0

    @property
    def device(self):
        """The calling thread's."""
        return getattr(self.thread, "device", 0)

    @property
    def capturing(self):
        """What the calling thread has recorded so far; None if it does not record."""
        return getattr(self.thread, "capturing", None)

    def allocated_on(self, device):
        return [memory for address, memory in self.allocated.items() if self.owners[address] == device]

    # Devices

    def cudaGetDeviceCount(self):
        if self.driver < 13000:
            return cudaError_t.cudaErrorInsufficientDriver, None
        return (cudaError_t.cudaSuccess, self.gpus) if self.gpus else (cudaError_t.cudaErrorNoDevice, None)

    def cudaGetDevice(self):
        return cudaError_t.cudaSuccess, self.device

    def cudaGetErrorString(self, error):
        words = {cudaError_t.cudaErrorNoDevice: b"no CUDA-capable device is detected"}
        return cudaError_t.cudaSuccess, words.get(error, cudaError_t(error).name.encode())

    def cudaSetDevice(self, device):
        assert 0 <= device < self.gpus
        self.thread.device = device
        return OK

    def cudaGetDeviceProperties(self, device):
        major, minor = self.capability[device] if isinstance(self.capability, dict) else self.capability
        return cudaError_t.cudaSuccess, SimpleNamespace(name=b"Fake RTX 4090", major=major, minor=minor)

    def cudaDriverGetVersion(self):
        return cudaError_t.cudaSuccess, self.driver

    def cudaMemGetInfo(self):
        taken = self.used + sum(len(memory) - 256 for memory in self.allocated_on(self.device))
        return cudaError_t.cudaSuccess, self.total - taken, self.total

    # Memory

    def cudaMalloc(self, size):
        self.calls.append(("malloc", size))
        if size > self.cudaMemGetInfo()[1]:
            return cudaError_t.cudaErrorMemoryAllocation, 0
        return cudaError_t.cudaSuccess, self._take(self.allocated, size)

    def cudaFree(self, devPtr):
        self.calls.append(("free", devPtr))
        del self.allocated[devPtr]
        return OK

    def cudaHostAlloc(self, size, flags):
        return cudaError_t.cudaSuccess, self._take(self.pinned, size)

    def cudaFreeHost(self, ptr):
        del self.pinned[ptr]
        return OK

    def cudaMemcpyAsync(self, dst, src, count, kind, stream):
        upload = kind == cudaMemcpyKind.cudaMemcpyHostToDevice
        self.check(dst if upload else src, count)
        assert (src if upload else dst) in self.pinned
        assert stream == STREAM + self.device
        self.busy.add(self.device)
        self.calls.append(("upload" if upload else "download", count))
        ctypes.memmove(dst, src, count)
        return OK

    def _take(self, where, size):
        memory = ctypes.create_string_buffer(size + 256)
        address = -(-ctypes.addressof(memory) // 256) * 256
        where[address] = memory
        self.owners[address] = self.device
        return address

    # Streams and graphs

    def cudaStreamCreateWithFlags(self, flags):
        return cudaError_t.cudaSuccess, STREAM + self.device

    def cudaStreamDestroy(self, stream):
        self.calls.append(("destroy stream", stream))
        return OK

    def cudaStreamSynchronize(self, stream):
        """Waits for this stream only: those made with cudaStreamNonBlocking do not wait for the NULL stream, 0."""
        assert stream in (0, STREAM + self.device)
        (self.busy if stream else self.null_stream).discard(self.device)
        return OK

    def cudaStreamBeginCapture(self, stream, mode):
        self.calls.append(("capture",))
        self.thread.capturing = []
        return OK

    def cudaStreamEndCapture(self, stream):
        work, self.thread.capturing = self.capturing, None
        if not self.capturable:
            return cudaError_t.cudaErrorStreamCaptureInvalidated, 0
        self.calls.append(("end capture", len(work)))
        self.captured[len(self.calls)] = work
        return cudaError_t.cudaSuccess, len(self.calls)

    def cudaGraphInstantiate(self, graph, flags):
        if not self.instantiable:
            return cudaError_t.cudaErrorMemoryAllocation, 0
        self.calls.append(("instantiate", graph))
        handle = len(self.calls)
        self.graphs[handle] = self.captured[graph]
        return cudaError_t.cudaSuccess, handle

    def cudaGraphDestroy(self, graph):
        del self.captured[graph]
        return OK

    def cudaGraphExecDestroy(self, graphExec):
        del self.graphs[graphExec]
        return OK

    def cudaGraphLaunch(self, graphExec, stream):
        self.calls.append(("launch", graphExec))
        for work in self.graphs[graphExec]:
            work()
        return OK
