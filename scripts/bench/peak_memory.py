"""Run a command and say how long it took and how much anonymous memory it held at most, children included.

    python -m scripts.bench.peak_memory python -m export.build --output bundle

The figures go to stderr, the command's output where it goes anyway, and its exit code is passed on. `export.memory`
says what anonymous memory is and how exact the peak is.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.memory import Peak, anonymous_bytes


@dataclass(frozen=True)
class Measured:
    """What a command cost."""

    seconds: float
    """From its start to its end."""
    peak_bytes: int
    """Largest sum over the process and its descendants at any one time."""
    code: int
    """Exit code, negative for a signal."""
    stdout: str
    stderr: str
    """Both empty unless they were captured."""


def run_measured(
    command: Sequence[object],
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    capture: bool = True,
    timeout: float | None = None,
) -> Measured:
    """Run `command` to its end, whatever its exit code, and measure it.

    Raises:
        FileNotFoundError: there is no such program.
        subprocess.TimeoutExpired: it ran longer than `timeout` seconds, and has been killed.
    """
    stream = subprocess.PIPE if capture else None
    started = time.perf_counter()
    with subprocess.Popen(
        [str(part) for part in command], cwd=cwd, env=environment, stdout=stream, stderr=stream, text=True
    ) as process:
        try:
            with Peak(lambda: sum(anonymous_bytes(pid) for pid in family(process.pid))) as peak:
                output = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    stdout, stderr = (text or "" for text in output)
    return Measured(time.perf_counter() - started, peak.highest, process.returncode, stdout, stderr)


def family(pid: int) -> list[int]:
    """A process and its descendants, as far as they are alive."""
    found, queue = [], [pid]
    while queue:
        found.append(queue.pop())
        for task in _entries(Path(f"/proc/{found[-1]}/task")):
            try:
                queue += map(int, (task / "children").read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended meanwhile
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder)]
    except (FileNotFoundError, ProcessLookupError):
        return []


def main(command: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    if not command or command[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        measured = run_measured(command, capture=False)
    except OSError as error:
        print(f"scripts.bench.peak_memory: error: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    print(f"{measured.seconds:.1f} s, {measured.peak_bytes / 1e9:.3f} GB of anonymous memory", file=sys.stderr)
    return measured.code if measured.code >= 0 else 128 - measured.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
