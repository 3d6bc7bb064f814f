"""Anonymous memory of processes, and the peak of any figure while something runs.

Anonymous memory is what a process has written itself, and what must fit into the machine's memory. The resident set
also counts pages of mapped weight files, which can be dropped and read again. Linux records no peak of anonymous
memory, so it is sampled: a peak shorter than the interval may be missed.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

INTERVAL = 0.02
"""Seconds between samples; one takes 0.1 ms for each process."""


def anonymous_bytes(pid: int | str = "self") -> int:
    """Anonymous resident bytes of one process; 0 when it has ended.

    Raises:
        RuntimeError: the system has no /proc as Linux has it.
    """
    if not Path("/proc/self/status").exists():
        raise RuntimeError("memory is read from Linux's /proc, which this system does not have")
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # A zombie's status no longer has such a line.
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon:")), 0)


class Peak:
    """The highest value that `read` returns while the context is open, sampled in a thread.

    The thread runs only while the others release Python's lock, as TensorRT does when it builds.
    """

    def __init__(self, read: Callable[[], int] = anonymous_bytes) -> None:
        self.read = read
        self.before = self.highest = read()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    @property
    def grown(self) -> int:
        """The highest value minus the one before."""
        return self.highest - self.before

    def __enter__(self) -> "Peak":
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
            self.highest = max(self.highest, self.read())
