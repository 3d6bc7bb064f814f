"""Run a bundle's graphs, and what surrounds them, on the inputs of its self-test."""

import time
from collections.abc import Sequence

import numpy as np

from runtime.console import describe
from runtime.errors import Ideogram4Error
from runtime.graph import Call, Graph
from runtime.pipeline import Pipeline
from runtime.selftest.contents import SelfTest
from runtime.selftest.host import facts_of, host_arrays
from runtime.selftest.memory import forget_peak, peak_bytes
from runtime.selftest.rows import Row, cosine, failed, relative_error

HOST_TOLERANCE = 1e-6
"""Of what numpy computes in float32. Its cosines and logarithms differ by a unit in the last place, 6e-8, between
versions and processors; one changed lane of the rotary tables' 128 is 1e-2 or more."""
ON_CPU, ON_CUDA = "ort", "ort-cuda"
"""What the tolerances call the graphs of ONNX Runtime on each kind of device."""
_FAILURES = (Ideogram4Error, ValueError, RuntimeError, MemoryError, OSError)


class SelfTestError(Ideogram4Error, RuntimeError):
    """Something is not what it was at the build; the message names it."""


def compare_all(pipeline: Pipeline, test: SelfTest) -> list[Row]:
    """A row for the manifest, for each thing that the host computes, and for each graph that is loaded."""
    rows = [_compare_facts(pipeline, test), *_compare_host(pipeline, test)]
    tolerances = test.tolerances.get(tolerance_key(pipeline), {})
    for name, graph in pipeline.graphs.items():
        rows.append(_compare_graph(name, graph, test.calls.get(name, ()), tolerances.get(name)))
    return rows


def raise_for(rows: Sequence[Row]) -> None:
    """Raise SelfTestError unless all rows passed."""
    if bad := failed(rows):
        raise SelfTestError(f"the self-test failed for {', '.join(bad)} ({len(bad)} of {len(rows)} comparisons)")


def tolerance_key(pipeline: Pipeline) -> str:
    """What the tolerances call that which runs the graphs."""
    if pipeline.engines is None:
        return ON_CPU if pipeline.device == "cpu" else ON_CUDA
    return next(name for name, engines in pipeline.manifest.engines.items() if engines == pipeline.engines)


def _compare_facts(pipeline: Pipeline, test: SelfTest) -> Row:
    found = facts_of(pipeline.manifest)
    for name in sorted(found.keys() | test.facts.keys()):
        if found.get(name) != test.facts.get(name):
            problem = f"{name} is {found.get(name, 'missing')}, and was {test.facts.get(name, 'missing')} at the build"
            return Row("manifest", problem)
    return Row("manifest")


def _compare_host(pipeline: Pipeline, test: SelfTest) -> list[Row]:
    try:
        found = host_arrays(pipeline.manifest, pipeline.prompt, test.picture)
    except _FAILURES as error:
        return [Row(name, describe(error)) for name in test.host]
    rows = []
    for name, expected in test.host.items():
        got = found.get(name, np.zeros(0))
        tolerance = 0.0 if expected.dtype == np.int64 else HOST_TOLERANCE
        rows.append(_row(name, [got], [expected], tolerance))
    return rows


def _compare_graph(name: str, graph: Graph, calls: Sequence[Call], tolerance: float | None) -> Row:
    if not calls or tolerance is None:
        return Row(name, "the self-test has no calls of it" if not calls else "the self-test has no tolerance for it")
    forget_peak()
    started = time.perf_counter()
    try:
        outputs = [graph(**call.feeds) for call in calls]
    except _FAILURES as error:
        return Row(name, describe(error))
    seconds = time.perf_counter() - started
    return _row(name, outputs, [call.output for call in calls], tolerance, seconds, peak_bytes())


def _row(
    name: str,
    got: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    tolerance: float,
    seconds: float | None = None,
    memory: int | None = None,
) -> Row:
    for one, wanted in zip(got, expected, strict=True):
        if one.shape != wanted.shape:
            return Row(name, f"it has the shape {list(one.shape)}, wanted {list(wanted.shape)}", seconds=seconds)
        if not np.isfinite(one).all():
            return Row(name, "it holds NaN or infinity", seconds=seconds)
    errors = [relative_error(one, wanted) for one, wanted in zip(got, expected, strict=True)]
    error = float(np.sqrt(np.mean(np.square(errors))))
    angle = min(cosine(one, wanted) for one, wanted in zip(got, expected, strict=True))
    problem = "" if error <= tolerance else f"it is off by {error:.2g}, wanted at most {tolerance:.2g}"
    return Row(name, problem, error, angle, tolerance, seconds, memory)
