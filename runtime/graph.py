"""What a loaded graph is, whatever runs it."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from runtime.bundle.graph_specs import TensorSpec
from runtime.errors import SAID, cut


class Graph(Protocol):
    """A loaded graph. The array that a call returns belongs to the caller."""

    def __call__(self, **feeds: np.ndarray) -> np.ndarray:
        """Run the graph on one array for each of its inputs and return its output.

        A read-only array is a promise that its contents never change: a graph may keep it on its device as long as
        the same object is passed.
        """
        ...


@dataclass(frozen=True)
class Call:
    """What a graph was given and what it gave."""

    feeds: dict[str, np.ndarray]
    output: np.ndarray


def check_feeds(name: str, inputs: tuple[TensorSpec, ...], feeds: dict[str, np.ndarray]) -> None:
    """Raise ValueError unless `feeds` has the names, types and shapes of `inputs`.

    Dimensions that vary are only compared in rank here; the graph itself rejects sizes that do not fit together.
    """
    if set(feeds) != {spec.name for spec in inputs}:
        wanted = ", ".join(sorted(spec.name for spec in inputs))
        raise ValueError(f"graph {name} got the inputs {', '.join(sorted(feeds))}, wanted {cut(wanted, SAID)}")
    for spec in inputs:
        array = feeds[spec.name]
        fits = len(array.shape) == len(spec.shape) and all(
            isinstance(wanted, str) or wanted == got for wanted, got in zip(spec.shape, array.shape, strict=True)
        )
        if array.dtype != spec.dtype or not fits:
            raise ValueError(
                f"graph {name} got {spec.name} as {array.dtype}{list(array.shape)}, "
                f"wanted {spec.dtype}{list(spec.shape)}"
            )
