"""Triton's objects to ours and back: the one file, beside the two models, that knows the server.

The classes of `triton_python_backend_utils` appear only after the model's file is imported, so they are named inside
functions alone.
"""

import json
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from runtime.console import describe
from runtime.errors import cut
from serving.batching import Cancelled, Expired, Outcome
from serving.requests import Ask, read_plans
from serving.responses import reply, wanted_outputs
from serving.service import Engine, EngineFailedError
from serving.shared_memory import Room, size_of
from serving.tensors import INPUTS, PNG_PARAMETER

logger = logging.getLogger(__name__)

_LONGEST = 500
"""Characters of a message. gRPC carries it in a header, each byte beyond ASCII in three: 8 kB of it end a stream."""


def read(engine: Engine, request: Any) -> Ask | Exception:
    """The request, or what is wrong with it: a ValueError for all that is known to be."""
    until = time.monotonic() + engine.limits.seconds
    tensors = ((spec.name, pb_utils.get_input_tensor_by_name(request, spec.name)) for spec in INPUTS)
    try:
        arrays = {name: tensor.as_numpy() for name, tensor in tensors if tensor is not None}
        plans = read_plans(engine.pipeline, arrays, engine.limits.work)
        # Microseconds, 0 for none: the parameter ``timeout`` of a request.
        if patience := request.timeout():
            until = min(until, time.monotonic() + patience / 1e6)
    except Exception as error:  # what is raised in a model fails the whole batch
        return error
    return Ask(plans, request.is_cancelled, until)


def answer(request: Any, outcome: Outcome, room: Room, more: Mapping[str, np.ndarray] | None = None) -> Outcome:
    """Send the last response to a request: its pictures, with the arrays of `more`, or an error with its code.

    One that cannot be sent can be followed by no other: its client would wait, and the server could not stop. So it is
    looked at first whether there is room for it. (Pictures first and then the end by itself would be safe, too, were it
    not for Triton 2.51, which crashes at an end that comes behind an error to a client that has gone.)

    Returns:
        What the client was told.
    """
    outcome, arrays = _arrays(request, outcome)
    size = size_of(arrays)
    try:
        room.check(size)
    except OSError as error:
        outcome = error
    made = _error(outcome) if isinstance(outcome, Exception) else arrays_response({**(more or {}), **arrays})
    try:
        request.get_response_sender().send(made, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    except Exception as error:  # the last resort: a process that has gone answers everybody, and probes notice it
        logger.critical("a response cannot be sent, so that its request would never end: %s", error)
        os._exit(1)
    room.sent(size if not isinstance(outcome, Exception) else 0)
    return outcome


def _arrays(request: Any, outcome: Outcome) -> tuple[Outcome, dict[str, np.ndarray]]:
    """The outputs for an outcome; if they cannot be made, the outcome is why."""
    if isinstance(outcome, Exception):
        return outcome, {}
    try:
        png_parameter = bool(json.loads(request.parameters()).get(PNG_PARAMETER, False))
        return outcome, reply(outcome, wanted_outputs(request.requested_output_names(), png_parameter))
    except Exception as error:  # no memory for a PNG, for one; the others of the batch have theirs
        return error, {}


def arrays_response(arrays: Mapping[str, np.ndarray]) -> Any:
    """A response with these outputs."""
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in arrays.items()])


def _error(error: Exception) -> Any:
    message = cut(describe(error) or type(error).__name__, _LONGEST)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, _code(error)))


def _code(error: Exception) -> Any:
    """One of the codes of `TritonError`, which are an enumeration of the server's own."""
    if isinstance(error, Expired):  # as Triton answers what has waited for too long
        return pb_utils.TritonError.UNAVAILABLE
    if isinstance(error, Cancelled):
        return pb_utils.TritonError.CANCELLED
    if isinstance(error, ValueError):
        return pb_utils.TritonError.INVALID_ARG
    if isinstance(error, EngineFailedError):
        return pb_utils.TritonError.UNAVAILABLE
    return pb_utils.TritonError.INTERNAL


class Counts:
    """Requests by how they ended, in the server's metrics, where Triton itself counts refused requests as successes."""

    OUTCOMES = ("ok", "refused", "cancelled", "failed")

    def __init__(self, model: str) -> None:
        # Kept: a family that is collected takes its metrics with it.
        self.family = pb_utils.MetricFamily(
            name="ideogram4_requests_total",
            description="Requests by how they ended",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self.metrics = {name: self.family.Metric(labels={"model": model, "outcome": name}) for name in self.OUTCOMES}

    def add(self, outcome: Outcome) -> None:
        """Count one request."""
        kinds = {Cancelled: "cancelled", ValueError: "refused", Exception: "failed"}
        name = next((name for kind, name in kinds.items() if isinstance(outcome, kind)), "ok")
        self.metrics[name].increment(1)


def withdraw(model: str) -> None:
    """Ask the server to unload this model, so that it is no longer ready; that is done when its requests are answered.

    Only for servers with ``--model-control-mode=explicit``: others refuse, and Triton 2.51 then ends (an error in its
    Python backend: the refusal throws ``boost::interprocess::lock_exception``).
    """
    pb_utils.unload_model(model)
