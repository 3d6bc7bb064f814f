"""The memory of a server and its models while it works."""

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
        self.samples: list[tuple[float, int]] = []
        """Seconds since the start, and bytes."""

    def run(self) -> None:
        started = time.monotonic()
        while not self._ended.wait(_SECONDS):
            processes = [self._server.process.pid, *model_processes(self._server)]
            self.samples.append((time.monotonic() - started, sum(map(_resident, processes))))

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def median(self, first: float, last: float) -> float:
        """Bytes in the middle of the looks between two shares of the time; nan without any."""
        end = self.samples[-1][0] if self.samples else 0.0
        chosen = [size for seconds, size in self.samples if first * end <= seconds <= last * end]
        return statistics.median(chosen) if chosen else float("nan")


def _resident(process: int) -> int:
    """Bytes of a process that no other has; 0 when it has ended."""
    try:
        with open(f"/proc/{process}/smaps_rollup", encoding="ascii") as lines:
            return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))
    except OSError:
        return 0
