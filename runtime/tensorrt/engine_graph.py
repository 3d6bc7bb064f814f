"""One stage of a bundle as a TensorRT engine, called with numpy arrays like any other graph."""

from collections.abc import Iterator

import numpy as np

from runtime.bundle.manifest import EngineSpec
from runtime.graph import check_feeds
from runtime.tensorrt.buffers import Buffer
from runtime.tensorrt.cuda import Device
from runtime.tensorrt.engine import Engine
from runtime.tensorrt.residency import Residency


class EngineGraph:
    """Arrays in pinned memory, to the device, through the engine, and back. Not for several threads at a time."""

    def __init__(self, name: str, spec: EngineSpec, engine: Engine, residency: Residency, device: Device) -> None:
        self.name, self.spec, self.engine, self.residency, self.device = name, spec, engine, residency, device
        self.inputs = {tensor.name: Buffer(device) for tensor in spec.inputs}
        self.output = Buffer(device)

    def __call__(self, **feeds: np.ndarray) -> np.ndarray:
        """Run on one array for each input; a batch that is larger than the engine's runs in parts.

        Raises:
            ValueError: the arrays are not what the engine takes.
            BackendError: TensorRT or CUDA failed.
        """
        check_feeds(self.name, self.spec.inputs, feeds)
        sizes = named_sizes(self.name, self.spec, feeds)
        self.device.activate()
        self.residency.require(self.name)
        batch = self.spec.outputs[0].shape[0]
        if not isinstance(batch, str):
            return self._run(feeds, feeds)
        parts = [self._run(part, feeds) for part in self._parts(feeds, batch, sizes[batch])]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """All memory that the graph holds for its tensors."""
        return (*self.inputs.values(), self.output)

    def _parts(self, feeds: dict[str, np.ndarray], batch: str, count: int) -> Iterator[dict[str, np.ndarray]]:
        """Feeds for as many pictures at a time as the engine takes."""
        most = self.spec.sizes[batch].maximum if batch in self.spec.sizes else count
        if count <= most:
            yield feeds
            return
        batched = {tensor.name for tensor in self.spec.inputs if tensor.shape[0] == batch}
        for start in range(0, count, most):
            rows = slice(start, start + most)
            yield {name: array[rows] if name in batched else array for name, array in feeds.items()}

    def _run(self, feeds: dict[str, np.ndarray], originals: dict[str, np.ndarray]) -> np.ndarray:
        output = self.spec.outputs[0]
        for name, buffer in self.inputs.items():
            buffer.fill(feeds[name], originals[name])
        shape = self.engine.bind({name: feeds[name].shape for name in self.inputs})
        dtype = np.dtype(output.dtype)
        self.output.reserve(int(np.prod(shape)) * dtype.itemsize)
        self.engine.place({name: buffer.address for name, buffer in self.inputs.items()})
        self.engine.place({output.name: self.output.address})
        self.engine.run()
        return self.output.read(shape, dtype)


def named_sizes(name: str, spec: EngineSpec, feeds: dict[str, np.ndarray]) -> dict[str, int]:
    """The values of the inputs' named sizes; ValueError if they contradict each other or leave the engine's ranges.

    A batch may be larger than the engine's: it is run in parts.
    """
    sizes: dict[str, int] = {}
    batch = spec.outputs[0].shape[0]
    for tensor in spec.inputs:
        for size, value in zip(tensor.shape, feeds[tensor.name].shape, strict=True):
            if not isinstance(size, str):
                continue
            if sizes.setdefault(size, value) != value:
                raise ValueError(f"graph {name} got {size} = {sizes[size]} and, in {tensor.name}, {value}")
            limits = spec.sizes.get(size)
            if limits and (value < limits.minimum or (value > limits.maximum and size != batch)):
                raise ValueError(
                    f"graph {name} got {tensor.name} with {size} = {value}, and its engine takes {limits.minimum} to "
                    f"{limits.maximum}"
                )
    return sizes
