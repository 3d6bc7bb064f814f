"""The memory of a server and its models while it works."""

import math
import statistics
import threading
import time

from scripts.triton.server import Server, model_processes

_SECONDS = 2.0
"""Between two looks."""


class MemoryWatch(threading.Thread):
    """Looks at the resident memory of the server and its models' processes until it is stopped."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server, self._ended = server, threading.Event()
        self.samples: list[tuple[float, int, int]] = []
        """Seconds since the start, bytes of the server, and of its models."""

    def run(self) -> None:
        started = time.monotonic()
        while not self._ended.wait(_SECONDS):
            models = sum(map(_resident, model_processes(self._server)))
            self.samples.append((time.monotonic() - started, _resident(self._server.process.pid), models))

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def medians(self, first: float, last: float) -> tuple[float, float]:
        """Bytes of the server and of its models, in the middle of the looks between two shares of the time; nan without
        any look."""
        end = self.samples[-1][0] if self.samples else 0.0
        chosen = [sizes for seconds, *sizes in self.samples if first * end <= seconds <= last * end]
        if not chosen:
            return math.nan, math.nan
        server, models = map(statistics.median, zip(*chosen, strict=True))
        return server, models


def _resident(process: int) -> int:
    """Bytes of a process that no other has; 0 when it has ended."""
    try:
        with open(f"/proc/{process}/smaps_rollup", encoding="ascii") as lines:
            return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))
    except OSError:
        return 0
