"""Run both sides on a self-test's inputs and compare all values that they have in common, in the order of the graph."""

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from export.debug.values import Layer
from runtime.errors import BackendError
from runtime.graph import Call
from runtime.selftest.rows import relative_error

AT_ONCE = 64
"""Values that a run gives at a time: all values of a real transformer would take 5 GB."""


class Side(Protocol):
    """Something that gives the values of a graph."""

    label: str
    layers: Mapping[str, Layer]

    def runner(self, outputs: Sequence[str]) -> Any:
        """Polygraphy's runner that gives these values, by the layers' outputs."""
        ...


@dataclass(frozen=True)
class Compared:
    """One value on both sides."""

    layer: Layer
    error: float
    """Norm of the difference by the norm of the other side's value, root mean square over the inputs; infinity for
    another shape, NaN or infinity."""
    tolerance: float

    @property
    def is_off(self) -> bool:
        return not self.error <= self.tolerance


def compared_values(ours: Side, theirs: Side, calls: Sequence[Call], tolerance: float) -> Iterator[Compared]:
    """Every value that both sides have, in our graph's order.

    Raises:
        ValueError: the sides have no values in common.
        BackendError: a side cannot be run.
    """
    common = [name for name in ours.layers if name in theirs.layers]
    if not common:
        raise ValueError(f"{ours.label} and {theirs.label} have no values in common")
    for start in range(0, len(common), AT_ONCE):
        names = common[start : start + AT_ONCE]
        errors = _errors(ours, theirs, names, calls)
        for name in names:
            error = math.sqrt(float(np.mean(np.square(errors[name]))))
            yield Compared(ours.layers[name], error, tolerance)


def _errors(ours: Side, theirs: Side, names: Sequence[str], calls: Sequence[Call]) -> dict[str, list[float]]:
    """The relative errors of each value, one for each call."""
    from polygraphy.comparator import Comparator
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    found: dict[str, list[float]] = {name: [] for name in names}
    runners = [side.runner([side.layers[name].output for name in names]) for side in (ours, theirs)]

    def compare(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> "OrderedDict[str, bool]":
        for name in names:
            found[name].append(_error(one[ours.layers[name].output], other[theirs.layers[name].output]))
        return OrderedDict.fromkeys(names, True)  # what is off is told by the caller, who knows the tolerances

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):  # it says what it does on standard output
        try:
            results = Comparator.run(runners, data_loader=[dict(call.feeds) for call in calls])
            Comparator.compare_accuracy(results, compare_func=compare)
        except PolygraphyException as error:
            raise BackendError(f"Polygraphy cannot compare the two: {' '.join(str(error).split())}") from error
    return found


def _error(got: np.ndarray, expected: np.ndarray) -> float:
    if got.shape != expected.shape or not np.isfinite(got).all():
        return math.inf
    return relative_error(got, expected)
