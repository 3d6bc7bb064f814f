"""Requests to a Triton server, for tests/triton_server. Needs tritonclient."""

import time
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np

from scripts.triton.client import infer_inputs, triton
from scripts.triton.server import Server

PROTOCOLS = ("http", "grpc")
PATIENCE = 60.0
"""Seconds that anything may take; nothing is timed."""


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; AssertionError after a minute."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def metrics(server: Server) -> str:
    """The server's page of metrics."""
    with urllib.request.urlopen(server.metrics) as page:
        return page.read().decode()


def wait_for_metrics(server: Server, *lines: str) -> None:
    """Wait until each of `lines` stands on the page of metrics: a request is counted after its answer has left."""
    wait_for(lambda: {*lines} <= {*metrics(server).splitlines()})


def connect(server: Server, protocol: str) -> Any:
    """A client of the server."""
    client = triton(protocol)[0]
    patience = {"network_timeout": 120.0} if protocol == "http" else {}
    return client.InferenceServerClient(getattr(server, protocol), **patience)


def ask(
    server: Server, protocol: str = "http", model: str = "ideogram4", outputs: tuple[str, ...] = (), **inputs: Any
) -> dict[str, np.ndarray]:
    """The outputs of one request, by name; `inputs` as `scripts.triton.client.infer_inputs` takes them."""
    client = triton(protocol)[0]
    wanted = [client.InferRequestedOutput(name) for name in outputs] or None
    with connect(server, protocol) as connection:
        return arrays(connection.infer(model, infer_inputs(client, inputs), outputs=wanted))


def arrays(result: Any) -> dict[str, np.ndarray]:
    """All outputs of a result of either protocol."""
    response = result.get_response()
    outputs = response["outputs"] if isinstance(response, dict) else response.outputs
    names = [output["name"] if isinstance(output, dict) else output.name for output in outputs]
    return {name: result.as_numpy(name) for name in names}
