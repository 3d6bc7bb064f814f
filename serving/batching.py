"""Plans to pictures: what can run together runs together, and nothing that goes wrong spoils its neighbours.

Rows run together when their plans differ in nothing but the seed and the number of pictures. Each keeps the noise of
its own seed, so its picture is the one that it would be alone. With ONNX Runtime on a CPU the two are equal in every
byte (tested); a GPU may choose other kernels for another batch size.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from runtime.generated import Generated
from runtime.pipeline import Pipeline
from runtime.plan import Plan
from serving.requests import Ask

Progress = Callable[[int, int, np.ndarray], None]
"""Called after each step with the steps done, the number of steps, and the latents (B, N, C) float32."""


class Cancelled(Exception):
    """Nobody waits for the pictures any more."""


class Expired(Cancelled):
    """The request has taken as long as it may."""


@dataclass(frozen=True)
class Picture:
    """A picture and what it was made with."""

    image: np.ndarray
    """(H, W, 3) uint8."""
    used: dict[str, Any]
    """What ``trt-generate`` writes into the PNG."""


@dataclass(frozen=True)
class Row:
    """One plan of an `Ask`."""

    ask: Ask
    plan: Plan


Outcome = tuple[Picture, ...] | Exception
"""The pictures of an `Ask` in the order of its rows, or why there are none: `Cancelled` or what a stage raised."""


def make_pictures(pipeline: Pipeline, asks: Sequence[Ask], limit: int) -> list[Outcome]:
    """Do all that is asked for; the outcomes are in the order of `asks`.

    Args:
        pipeline: makes the pictures.
        asks: requests that Triton handed over together.
        limit: pictures that run together, at most; a plan that alone wants more runs alone.
    """
    rows = [Row(ask, plan) for ask in asks for plan in ask.plans]
    results: dict[int, tuple[Picture, ...] | Exception] = {}
    for group in grouped(rows, limit):
        for index, result in zip(group, _run_apart([rows[i] for i in group], pipeline), strict=True):
            results[index] = result
    outcomes: list[Outcome] = []
    start = 0
    for ask in asks:
        own = [results[index] for index in range(start, start + len(ask.plans))]
        start += len(ask.plans)
        error = next((result for result in own if isinstance(result, Exception)), None)
        made = [result for result in own if not isinstance(result, Exception)]
        outcomes.append(error if error is not None else tuple(picture for pictures in made for picture in pictures))
    return outcomes


def grouped(rows: Sequence[Row], limit: int) -> Iterator[list[int]]:
    """Indices of rows that can run together, at most `limit` pictures at a time, in the order of first appearance."""
    groups: dict[Plan, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(replace(row.plan, seed=0, num_images=1), []).append(index)
    for indices in groups.values():
        part: list[int] = []
        pictures = 0
        for index in indices:
            count = rows[index].plan.num_images
            if part and pictures + count > limit:
                yield part
                part, pictures = [], 0
            part.append(index)
            pictures += count
        yield part


def run(pipeline: Pipeline, rows: Sequence[Row], progress: Progress | None = None) -> list[tuple[Picture, ...]]:
    """The pictures of rows that can run together.

    Raises:
        Cancelled: all rows were cancelled, or have taken as long as they may; seen before the first step and after
            each.
        RuntimeError: a stage failed.
    """

    def on_step(done: int, total: int, latents: np.ndarray) -> None:
        _check_wanted(rows)
        if progress:
            progress(done, total, latents)

    _check_wanted(rows)
    plans = [row.plan for row in rows]
    counts = [plan.num_images for plan in plans]
    if len(plans) == 1:
        made = pipeline.run(plans[0], on_step=on_step)
    else:
        noise = np.concatenate([pipeline.noise(plan) for plan in plans])
        made = pipeline.run(replace(plans[0], num_images=sum(counts)), noise, on_step)
    ends = np.cumsum(counts)
    return [_pictures(made, plan, end - plan.num_images) for plan, end in zip(plans, ends, strict=True)]


def _run_apart(rows: Sequence[Row], pipeline: Pipeline) -> list[tuple[Picture, ...] | Exception]:
    """The rows' pictures, made together; if that fails, each alone, so that only what fails by itself has an error."""
    try:
        return list(run(pipeline, rows))
    except Cancelled as error:
        return [error] * len(rows)
    except Exception as error:  # whatever a stage raises, Triton would answer all requests of the batch with it
        if len(rows) == 1:
            return [error]
        return [result for row in rows for result in _run_apart([row], pipeline)]


def _check_wanted(rows: Sequence[Row]) -> None:
    now = time.monotonic()
    late = [row.ask.until < now for row in rows]
    if all(late):
        raise Expired("the request has taken as long as it may, and was stopped")
    if all(over or row.ask.cancelled() for over, row in zip(late, rows, strict=True)):
        raise Cancelled("the request was cancelled")


def _pictures(made: Generated, plan: Plan, start: int) -> tuple[Picture, ...]:
    used = made.used | plan.to_dict()
    images = made.images[start : start + plan.num_images]
    return tuple(Picture(image, used | {"index": index}) for index, image in enumerate(images))
