"""Rows of the benchmark's table, and how figures are taken on a machine that other processes use, too."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

from export.reporting.text_table import aligned

T = TypeVar("T")

BUSY = 0.1
"""CPU cores that other processes may use during a run."""
ATTEMPTS, PATIENCE = 4, 120.0
"""Runs until a disturbed one is kept; seconds to wait for an idle machine before each."""


@dataclass(frozen=True)
class Figure:
    """One row of the table."""

    name: str
    measured: float
    """Peer / ours, or the value itself where there is no peer."""
    ours: str = ""
    peer: str = ""
    unit: str = "x"
    wanted: float | None = None
    """The project's goal: at least this for a ratio, at most for a value."""

    @property
    def verdict(self) -> str:
        """``met`` or ``missed``; nothing without a goal."""
        if self.wanted is None:
            return ""
        return "met" if (self.measured >= self.wanted if self.peer else self.measured <= self.wanted) else "missed"

    def cells(self) -> tuple[str, ...]:
        wanted = "" if self.wanted is None else f"{'>=' if self.peer else '<='} {self.wanted:g}{self.unit}"
        return self.name, self.ours, self.peer, f"{self.measured:.3g}{self.unit}", wanted, self.verdict


class Turns:
    """Runs the sides in turns on an idle machine, and counts the runs that others disturbed all the same."""

    def __init__(self) -> None:
        self.runs = self.disturbed = 0

    def take(self, sides: Sequence[Callable[[], T]], repeats: int) -> list[list[T]]:
        """The results of each side in `repeats` rounds, after a first round that does not count."""
        rounds = [[side() for side in sides]]
        for number in range(1, repeats + 1):
            print(f"\rround {number} of {repeats} ", end="", file=sys.stderr, flush=True)
            rounds.append([self._undisturbed(side) for side in sides])
        print(file=sys.stderr)
        return [list(results) for results in zip(*rounds[1:], strict=True)]

    def _undisturbed(self, side: Callable[[], T]) -> T:
        self.runs += 1
        for _ in range(ATTEMPTS):
            wait_until_idle()
            started, before = time.perf_counter(), busy_seconds() - sum(os.times()[:4])
            result = side()
            # os.times: user and system seconds of this process and of its finished children.
            if busy_seconds() - sum(os.times()[:4]) - before <= BUSY * (time.perf_counter() - started):
                return result
        self.disturbed += 1
        return result


def busy_seconds() -> float:
    """CPU seconds that the machine has spent working; 0 without Linux' /proc, where nothing counts as disturbed."""
    if not Path("/proc/stat").exists():
        return 0.0
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def wait_until_idle() -> None:
    """Wait for other processes, and for this one's threads, which spin for a while after their work."""
    deadline = time.perf_counter() + PATIENCE
    busy = True
    while busy and time.perf_counter() < deadline:
        before = busy_seconds()
        time.sleep(0.5)
        busy = busy_seconds() - before > BUSY * 0.5


def compare(
    name: str, ours: Sequence[float], peer: Sequence[float], unit: str, scale: float = 1, goal: float | None = None
) -> Figure:
    """The row for the medians of both sides."""
    a, b = median(ours), median(peer)
    return Figure(name, b / a, f"{a / scale:.3g} {unit}", f"{b / scale:.3g} {unit}", wanted=goal)


def table(rows: list[Figure]) -> str:
    """The rows as aligned text."""
    cells = [("figure", "ours", "diffusers", "measured", "wanted", ""), *(row.cells() for row in rows)]
    return aligned(cells, words=len(cells[0]))
