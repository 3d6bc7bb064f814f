"""CUDA graphs of an engine, one for each set of shapes: launching one is a single call instead of one per kernel."""

from collections.abc import Callable, Hashable
from typing import Any

from runtime.tensorrt.cuda import Device


class Captures:
    """What was captured, and what could not be.

    A graph holds the addresses that it was captured with. The first run of new shapes is not captured: TensorRT
    prepares itself in it, and stages that run once for a picture would pay for a graph that is never launched again.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.addresses: Hashable = None
        self.graphs: dict[Hashable, Any | None] = {}
        """By shapes; None where capturing is impossible."""
        self.seen: set[Hashable] = set()

    def run(self, shapes: Hashable, addresses: Hashable, enqueue: Callable[[], bool]) -> bool:
        """Put the engine's work on the stream, by `enqueue` or by launching what it once put there.

        Returns what `enqueue` does: whether it succeeded.
        """
        if addresses != self.addresses:
            self.clear()
            self.addresses = addresses
        if shapes in self.seen and shapes not in self.graphs:
            self.graphs[shapes] = self.device.capture(enqueue)
        self.seen.add(shapes)
        graph = self.graphs.get(shapes)
        if graph is None:
            return enqueue()
        self.device.launch(graph)
        return True

    def clear(self) -> None:
        """Free all graphs."""
        graphs, self.graphs, self.seen = self.graphs, {}, set()
        for graph in graphs.values():
            if graph is not None:
                self.device.discard(graph)
