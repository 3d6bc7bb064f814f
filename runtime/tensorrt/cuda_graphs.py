"""The CUDA graph of an execution context: launching it is a single call instead of one per kernel."""

from collections.abc import Callable, Hashable
from typing import Any

from runtime.tensorrt.cuda import Device


class Capture:
    """The one graph of a context, for the shapes and addresses that it was captured with.

    NVIDIA's rules (TensorRT's guide, "CUDA Graphs"; NVIDIA/TensorRT issue 3798): a graph holds the shapes and the
    addresses of tensors and scratch memory; a change of shapes changes the context's own state, so that graphs from
    before must not be launched any more, whatever shapes come back; after a change the context is enqueued once
    without a capture, for updates that it has put off; and a context has one graph.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.state: Hashable = None
        """What the context was set to in the last run."""
        self.graph: Any | None = None
        self.refused = False
        """The work in this state cannot be captured."""

    def run(self, state: Hashable, enqueue: Callable[[], bool]) -> bool:
        """Put the context's work on the stream, by `enqueue` or by launching what it once put there.

        Args:
            state: shapes and addresses that the context is set to.
            enqueue: TensorRT's own call.

        Returns:
            What `enqueue` does: whether it succeeded.
        """
        if state != self.state:
            self.clear()
            done = enqueue()
            # Only now: a run that failed has not brought the context up to date.
            self.state = state if done else None
            return done
        if self.graph is None and not self.refused:
            self.graph = self.device.capture(enqueue)
            self.refused = self.graph is None
        if self.graph is None:
            return enqueue()
        self.device.launch(self.graph)
        return True

    def clear(self) -> None:
        """Free the graph."""
        graph, self.graph = self.graph, None
        self.state, self.refused = None, False
        if graph is not None:
            self.device.discard(graph)
