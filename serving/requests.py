"""A request's tensors to plans, checked. Knows no Triton: `serving.wire` hands over numpy arrays."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.errors import RequestError, shown
from runtime.pipeline import Pipeline
from runtime.plan import Plan, make_plan
from runtime.prompt.tokens import MAX_BYTES
from runtime.request import INTERVAL, KINDS, MAX_IMAGES, PICTURE, Request
from runtime.sampling.schedule import MAX_STEPS
from serving.pictures import read_picture
from serving.tensors import INPUTS, NUMPY_TYPES, Tensor


@dataclass(frozen=True)
class Ask:
    """One request, read and checked."""

    plans: tuple[Plan, ...]
    """One for each row of the request's tensors."""
    cancelled: Callable[[], bool]
    """Whether the client has given up; may be asked at any time."""
    until: float = math.inf
    """Time of `time.monotonic` after which the request is not worked for any more."""


def read_plans(pipeline: Pipeline, tensors: Mapping[str, np.ndarray], most_work: float = math.inf) -> tuple[Plan, ...]:
    """One plan for each row of a request.

    Args:
        pipeline: whose bundle will make the pictures.
        tensors: the inputs that the request has, by name: (B, 1), ``guidance`` (B, K),
            ``guidance_interval`` (B, 2), with B rows.
        most_work: see `serving.settings.Limits.work`.

    Raises:
        RequestError: something is missing, of another type or shape, out of range, the rows do not go together, or they
            are more work than a request may ask for. With several rows the message names the row.
    """
    columns = {spec.name: _check(spec, tensors[spec.name]) for spec in INPUTS if spec.name in tensors}
    if unknown := sorted(set(tensors) - {spec.name for spec in INPUTS}):
        raise RequestError(f"there is no input {shown(unknown[0])}, wanted some of {', '.join(s.name for s in INPUTS)}")
    if missing := [spec.name for spec in INPUTS if spec.required and spec.name not in columns]:
        raise RequestError(f"the input {missing[0]!r} is missing")
    rows = len(columns["prompt"])
    if wrong := [name for name, column in columns.items() if len(column) != rows]:
        raise RequestError(f"the input {wrong[0]!r} has {len(columns[wrong[0]])} rows, wanted {rows}, as prompt has")
    plans = tuple(_plan(pipeline, columns, row, rows) for row in range(rows))
    _check_together(plans)
    _check_work(plans, most_work)
    return plans


def _check(spec: Tensor, array: np.ndarray) -> np.ndarray:
    """The array; RequestError unless it has the type of `spec` and the shape (B, 1) or (B, K), K from 1 to 1000."""
    wanted = NUMPY_TYPES[spec.type]
    (entries,) = spec.dims
    fits = array.ndim == 2 and array.size > 0 and entries in (-1, array.shape[1]) and array.shape[1] <= MAX_STEPS
    if array.dtype != wanted or not fits:
        shape = f"B, {f'K up to {MAX_STEPS}' if entries == -1 else entries}"
        raise RequestError(f"the input {spec.name!r} is {array.dtype} {list(array.shape)}, wanted {wanted} [{shape}]")
    return array


def _plan(pipeline: Pipeline, columns: Mapping[str, np.ndarray], row: int, rows: int) -> Plan:
    try:
        request = Request(**{name: _value(name, column[row]) for name, column in columns.items()})
        return make_plan(pipeline.manifest, pipeline.prompt, request)
    except ValueError as error:
        raise RequestError(f"row {row}: {error}" if rows > 1 else str(error)) from error


def _value(name: str, entries: np.ndarray) -> Any:
    """What `Request` takes for one row (K,) of an input."""
    kind = KINDS[name]
    if kind is PICTURE:
        return read_picture(name, entries[0])
    if entries.dtype == object:
        return _text(name, entries[0])
    if entries.dtype == np.float32:
        # The decimal that the client wrote: 7.1, and not the 7.099999904632568 that it is in float32.
        weights = tuple(float(str(entry)) for entry in entries)
        return weights if len(weights) > 1 else weights[0]
    return tuple(entries.tolist()) if kind is INTERVAL else entries[0]


def _text(name: str, data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise RequestError(f"the input {name!r} has {len(data)} bytes, wanted at most {MAX_BYTES}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"the input {name!r} is not UTF-8 text: byte {error.start} is invalid") from error


def _check_together(plans: tuple[Plan, ...]) -> None:
    """Raise ValueError unless the pictures of all rows fit into one tensor."""
    first = plans[0]
    for row, plan in enumerate(plans):
        if (plan.width, plan.height) != (first.width, first.height):
            raise RequestError(
                f"row {row} asks for {plan.width}x{plan.height} and row 0 for {first.width}x{first.height}; "
                "the pictures of one request must have one size"
            )
    if (pictures := sum(plan.num_images for plan in plans)) > MAX_IMAGES:
        raise RequestError(f"the request asks for {pictures} pictures, wanted 1 to {MAX_IMAGES}")


def _check_work(plans: tuple[Plan, ...], most: float) -> None:
    """Raise RequestError when the pictures take more steps, or have more pixels, than a request may ask for."""
    work = sum(plan.width * plan.height * len(plan.sampling.guidance) * plan.num_images for plan in plans) / 1e6
    if work > most:
        pictures, steps = sum(plan.num_images for plan in plans), max(len(plan.sampling.guidance) for plan in plans)
        raise RequestError(
            f"the request asks for {pictures} pictures of {plans[0].width}x{plans[0].height} in up to {steps} steps, "
            f"{work:.4g} million pixels x steps, wanted at most {most:.4g}"
        )
