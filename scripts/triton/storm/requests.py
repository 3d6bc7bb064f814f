"""What the clients ask for, and what must come back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runtime.pipeline import Pipeline

VALID: tuple[dict[str, Any], ...] = tuple(
    {"prompt": prompt, "seed": seed, "steps": steps, **more}
    for prompt, more in (
        ("a red circle on a blue background", {}),
        ("a small white heart at the top right on a red background", {"width": 128, "height": 192}),
        ("x", {"guidance": 1.0}),
    )
    for seed, steps in ((1, 2), (2, 4))
)
"""Small requests that differ in all that may keep requests apart."""
INVALID: tuple[dict[str, Any], ...] = (
    {"prompt": ""},
    {"prompt": "x", "steps": 0},
    {"prompt": "x", "width": 100},
    {"prompt": "x", "preset": "NONE"},
    {"prompt": "x", "guidance": float("nan")},
    {"prompt": "x", "image": b"no picture"},
)
OVERSIZED: tuple[dict[str, Any], ...] = (
    {"prompt": "x" * (4 << 20)},
    {"prompt": "x", "steps": 1000, "width": 2048, "height": 2048},
    {"prompt": "x", "preset": "N" * 100_000},
    {"prompt": "x", "image": b"\x89PNG" + bytes(33 << 20)},
)
LONG: dict[str, Any] = {"prompt": "x", "steps": 200, "seed": 3}
"""What is cancelled before it ends, most of the time."""
KINDS: Mapping[str, int] = {"valid": 10, "invalid": 3, "cancelled": 3, "aborted": 2, "oversized": 1}
"""Kinds of requests, and how often each is chosen."""


@dataclass
class Tally:
    """What became of the requests of one client."""

    ok: dict[str, int] = field(default_factory=dict)
    """By kind: what had to happen did."""
    retried: int = 0
    """Valid requests that were sent again, since a model was away as planned."""
    wrong: list[str] = field(default_factory=list)
    """Answers that are not what was asked for."""
    lost: list[str] = field(default_factory=list)
    """Requests without an answer, or refused without a reason."""

    def count(self, kind: str) -> None:
        """One more of a kind."""
        self.ok[kind] = self.ok.get(kind, 0) + 1

    def add(self, other: "Tally") -> None:
        """The sum of two clients'."""
        for kind, number in other.ok.items():
            self.ok[kind] = self.ok.get(kind, 0) + number
        self.retried += other.retried
        self.wrong += other.wrong
        self.lost += other.lost


def expected(pipeline: Pipeline) -> list[np.ndarray]:
    """The pictures (1, H, W, 3) of each request of `VALID`, as this process makes them."""
    return [pipeline.generate(**request).images for request in VALID]
