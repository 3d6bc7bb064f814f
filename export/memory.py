"""Anonymous memory of processes, sampled while they work.

Anonymous memory is what a process has written itself and what must fit into the machine's memory. Pages of mapped
weight files, which the resident set counts as well, can be dropped and read again. Linux keeps no peak of it, so it is
sampled: a peak that is shorter than the interval may be missed.
"""

import threading
from pathlib import Path
from types import TracebackType

INTERVAL = 0.02
"""Seconds between samples; one costs 0.1 ms for each process."""


def anonymous_bytes(pid: int | str = "self") -> int:
    """Anonymous resident bytes of one process; 0 when it has ended.

    Raises:
        RuntimeError: the system has no /proc as Linux has it.
    """
    if not Path("/proc/self/status").exists():
        raise RuntimeError("memory is read from Linux' /proc, which this system does not have")
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # A zombie's status has no such line any more.
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon:")), 0)


class PeakMemory:
    """Samples this process in a thread while the context is open; `peak` is in bytes, and grows meanwhile.

    The thread only runs while the others let go of Python's lock, as TensorRT does when it builds.
    """

    def __init__(self) -> None:
        self.peak = anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        finished = False
        while not finished:
            finished = self._done.wait(INTERVAL)
            self.peak = max(self.peak, anonymous_bytes())
