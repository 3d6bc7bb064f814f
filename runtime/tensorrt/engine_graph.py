"""One stage of a bundle as a TensorRT engine, called with numpy arrays like any other graph."""

from collections.abc import Iterator

import numpy as np

from runtime.bundle.graph_specs import EngineSpec
from runtime.graph import check_feeds
from runtime.tensorrt.buffers import Buffer
from runtime.tensorrt.cuda import Device
from runtime.tensorrt.engine import Engine
from runtime.tensorrt.profiles import choose_profile, profiles_text, range_text
from runtime.tensorrt.residency import Residency


class EngineGraph:
    """Arrays in pinned memory, to the device, through the engine, and back.

    Threads may call the graphs of a device; they take turns, one call at a time. TensorRT's contexts, the buffers and
    the scratch memory are for one thread at a time ("Thread Safety" in TensorRT's guide).
    """

    def __init__(self, name: str, spec: EngineSpec, engine: Engine, residency: Residency, device: Device) -> None:
        self.name, self.spec, self.engine, self.residency, self.device = name, spec, engine, residency, device
        self.inputs = {tensor.name: Buffer(device) for tensor in spec.inputs}
        self.output = Buffer(device)

    def __call__(self, **feeds: np.ndarray) -> np.ndarray:
        """Run on one array for each input; a batch that is larger than the engine's runs in parts.

        Raises:
            ValueError: the arrays are not what the engine takes.
            BackendError: TensorRT or CUDA failed.
            ClosedError: the pipeline of the graph was closed.
        """
        check_feeds(self.name, self.spec.inputs, feeds)
        sizes = named_sizes(self.name, self.spec, feeds)
        profile = self._profile(sizes)
        package = self.engine.package
        with self.device.lock:
            self.device.activate()
            with package.calling():
                self.residency.require(self.name)
            results = []
            for part in self._parts(feeds, sizes, profile):
                with package.calling(), self.device.idle_after_failure():
                    results.append(self._run(part, feeds, profile))
        return results[0] if len(results) == 1 else np.concatenate(results)

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """All memory that the graph holds for its tensors."""
        return (*self.inputs.values(), self.output)

    def _profile(self, sizes: dict[str, int]) -> int:
        """Index of the profile to run in; the batch does not matter, since it is run in parts that fit."""
        batch = self.spec.outputs[0].shape[0]
        others = {name: size for name, size in sizes.items() if name != batch}
        profile = choose_profile(self.spec, others)
        if profile is None:
            got = " and ".join(f"{name} = {size}" for name, size in others.items())
            raise ValueError(
                f"graph {self.name} got {got}, and its engine takes {profiles_text(self.spec, others)} together"
            )
        return profile

    def _parts(
        self, feeds: dict[str, np.ndarray], sizes: dict[str, int], profile: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """Feeds for as many pictures at a time as the engine takes."""
        batch = self.spec.outputs[0].shape[0]
        limits = self.spec.profiles[profile].sizes.get(batch) if isinstance(batch, str) else None
        count = sizes[batch] if isinstance(batch, str) else 1
        most = limits.maximum if limits else count
        if count <= most:
            yield feeds
            return
        batched = {tensor.name for tensor in self.spec.inputs if tensor.shape[0] == batch}
        for start in range(0, count, most):
            rows = slice(start, start + most)
            yield {name: array[rows] if name in batched else array for name, array in feeds.items()}

    def _run(self, feeds: dict[str, np.ndarray], originals: dict[str, np.ndarray], profile: int) -> np.ndarray:
        output, context = self.spec.outputs[0], self.engine.context(profile)
        for name, buffer in self.inputs.items():
            buffer.fill(feeds[name], originals[name])
        shape = context.bind({name: feeds[name].shape for name in self.inputs}, output.name)
        dtype = np.dtype(output.dtype)
        self.output.reserve(int(np.prod(shape)) * dtype.itemsize)
        context.place({name: buffer.address for name, buffer in self.inputs.items()})
        context.place({output.name: self.output.address})
        context.run()
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
            ranges = spec.ranges(size)
            least = min((limits.minimum for limits in ranges), default=0)
            if ranges and not any(value in limits for limits in ranges) and not (size == batch and value >= least):
                raise ValueError(
                    f"graph {name} got {tensor.name} with {size} = {value}, and its engine takes "
                    f"{range_text(spec, size)}"
                )
    return sizes
