"""Device memory that is kept between calls: buffers that grow, and the scratch memory that all engines share."""

import ctypes
import math

import numpy as np

from runtime.tensorrt.cuda import Device


class Buffer:
    """Device memory for one tensor, and pinned host memory to fill it from or to read it through.

    Both grow to the largest tensor seen and are never made smaller, so that pictures of one size allocate once.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.address = self.host = self.capacity = 0
        self.constant: np.ndarray | None = None
        """The read-only array that the device memory holds, if it does."""

    def reserve(self, size: int) -> None:
        """Make room for `size` bytes; what the buffer held is lost when it has to grow."""
        size = max(size, 1)
        if size <= self.capacity:
            return
        self.release()
        self.address = self.device.allocate(size)
        self.host = self.device.pin(size)
        self.capacity = size

    def fill(self, array: np.ndarray, original: np.ndarray) -> None:
        """Start to copy an array to the device.

        A read-only array is taken for a constant: while `original`, the one that the caller passed, is the same
        object as the last time, nothing is copied. `array` may be a part of it, and is then always copied.
        """
        self.reserve(array.nbytes)
        if array is original and array is self.constant:
            return
        np.copyto(self._host_array(array.shape, array.dtype), array)
        self.device.upload(self.address, self.host, array.nbytes)
        # The reference keeps the array alive: another one cannot come to lie at its place.
        self.constant = original if array is original and not original.flags.writeable else None

    def read(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Wait for the device and return a copy of the tensor that it wrote here."""
        self.device.download(self.host, self.address, math.prod(shape) * dtype.itemsize)
        self.device.synchronize()
        return self._host_array(shape, dtype).copy()

    def release(self) -> None:
        """Free the memory; the buffer can be used again."""
        address, host = self.address, self.host
        self.address = self.host = self.capacity = 0
        self.constant = None
        try:
            if address:
                self.device.release(address)
        finally:
            if host:
                self.device.unpin(host)

    def _host_array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        size = math.prod(shape) * dtype.itemsize
        memory = (ctypes.c_uint8 * size).from_address(self.host)
        array: np.ndarray = np.frombuffer(memoryview(memory), dtype)
        return array.reshape(shape)


class Arena:
    """Scratch memory for the activations of whichever engine runs.

    Engines run one after another on one stream, so one allocation serves them all: the two transformers share it.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.address = self.size = 0

    def reserve(self, size: int) -> None:
        """Make room for `size` bytes. The address changes when the arena grows; engines must be told."""
        if size <= self.size:
            return
        self.release()
        self.address = self.device.allocate(size)
        self.size = size

    def release(self) -> None:
        """Free the memory; the arena can be used again."""
        address, self.address, self.size = self.address, 0, 0
        if address:
            self.device.release(address)
