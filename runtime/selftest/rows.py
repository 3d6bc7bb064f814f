"""What a self-test found: one row for each thing that was compared."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Row:
    """One comparison. A number that was not measured is None."""

    name: str
    """The graph, or what else was compared."""
    problem: str = ""
    """Why it failed; empty if it passed."""
    error: float | None = None
    """Norm of the difference by the norm of what was expected, root mean square over the inputs."""
    cosine: float | None = None
    """Of the angle to what was expected; the least over the inputs."""
    tolerance: float | None = None
    """Largest error that passes."""
    seconds: float | None = None
    """Of all calls."""
    memory: int | None = None
    """The process' largest resident size meanwhile, in bytes."""


def failed(rows: Sequence[Row]) -> list[str]:
    """Names of the rows that did not pass."""
    return [row.name for row in rows if row.problem]


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference by the norm of `expected`; infinity for a difference from zeros."""
    wanted = expected.astype(np.float64)
    off, size = np.linalg.norm(got.astype(np.float64) - wanted), np.linalg.norm(wanted)
    if size == 0:
        return 0.0 if off == 0 else float("inf")
    return float(off / size)


def cosine(got: np.ndarray, expected: np.ndarray) -> float:
    """Of the angle between two arrays taken as vectors; 0 if one of them is zero."""
    a, b = got.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / size) if size else 0.0
