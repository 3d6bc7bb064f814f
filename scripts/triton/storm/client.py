"""One client: requests of random kinds, one after the other, and what became of them."""

import contextlib
import http.client
import json
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from runtime.image.files import decode_rgb
from scripts.triton.client import infer, infer_inputs, stream_grpc, stream_http, triton
from scripts.triton.server import Server
from scripts.triton.storm.requests import INVALID, KINDS, LONG, OVERSIZED, VALID, Tally

UNARY, STREAM = "ideogram4", "ideogram4_stream"
PATIENCE = 120.0
"""Seconds that any answer may take."""
_AWAY = ("is not healthy", "not ready", "unknown model", "no version is available", "UNAVAILABLE", "unloading")
"""What the server says of a model that is being loaded, or whose process was killed."""


class Client:
    """Works until it is told to stop."""

    def __init__(self, server: Server, pictures: list[np.ndarray], seed: int, disturbed: threading.Event) -> None:
        self._server, self._pictures, self._random = server, pictures, random.Random(seed)
        self._disturbed = disturbed
        self.tally = Tally()

    def work(self, deadline: float) -> None:
        """Ask until `deadline` of ``time.monotonic``."""
        asks = {"valid": self._valid, "cancelled": self._cancelled, "aborted": self._aborted}
        while time.monotonic() < deadline:
            kind = self._random.choices(list(KINDS), list(KINDS.values()))[0]
            refused = {"invalid": INVALID, "oversized": OVERSIZED}.get(kind)
            try:
                asks[kind]() if refused is None else self._refused(kind, self._random.choice(refused))
            except Exception as error:  # a client outlives whatever the server does
                self.tally.lost.append(f"{kind}: {type(error).__name__}: {error}"[:300])

    def _valid(self) -> None:
        """A picture, equal to the one that this process made."""
        number = self._random.randrange(len(VALID))
        ask = self._random.choice(self._ways())
        deadline = time.monotonic() + PATIENCE
        while True:
            was_disturbed = self._disturbed.is_set()
            try:
                files = ask(VALID[number])
                break
            except (RuntimeError, OSError) as error:
                is_planned = was_disturbed or self._disturbed.is_set() or any(text in str(error) for text in _AWAY)
                if not is_planned or time.monotonic() > deadline:
                    self.tally.lost.append(f"valid: {error}"[:300])
                    return
                self.tally.retried += 1
                time.sleep(0.2)
        made = np.stack([decode_rgb(file, "the answer") for file in files])
        if np.array_equal(made, self._pictures[number]):
            self.tally.count("valid")
        else:
            self.tally.wrong.append(f"{VALID[number]} gave another picture")

    def _ways(self) -> list[Callable[[dict[str, Any]], list[bytes]]]:
        http_url, grpc_url = self._server.http, self._server.grpc
        return [
            lambda inputs: infer("http", http_url, UNARY, inputs, PATIENCE),
            lambda inputs: infer("grpc", grpc_url, UNARY, inputs, PATIENCE),
            lambda inputs: stream_grpc(grpc_url, STREAM, inputs, PATIENCE, lambda *_: None),
            lambda inputs: stream_http(http_url, STREAM, inputs, PATIENCE, lambda *_: None),
        ]

    def _refused(self, kind: str, inputs: dict[str, Any]) -> None:
        """An answer that says what is wrong, and nothing of the code."""
        protocol = self._random.choice(("http", "grpc"))
        url = {"http": self._server.http, "grpc": self._server.grpc}[protocol]
        try:
            infer(protocol, url, UNARY, inputs, PATIENCE)
        except (RuntimeError, OSError) as error:
            message = str(error)
            if "Traceback" in message or len(message) > 4096:
                self.tally.wrong.append(f"{kind}: {message[:300]}")
            else:
                self.tally.count(kind)
        else:
            self.tally.wrong.append(f"{kind}: {str(inputs)[:100]} was accepted")

    def _cancelled(self) -> None:
        """A gRPC request that is cancelled, before or while it runs."""
        client, refusal = triton("grpc")
        ended = threading.Event()
        with client.InferenceServerClient(self._server.grpc) as connection:
            call = connection.async_infer(UNARY, infer_inputs(client, LONG), lambda result, error: ended.set())
            time.sleep(self._random.uniform(0, 0.5))
            with contextlib.suppress(refusal):
                call.cancel()
            if ended.wait(PATIENCE):
                self.tally.count("cancelled")
            else:
                self.tally.lost.append("cancelled: no word about its end")

    def _aborted(self) -> None:
        """A stream over HTTP whose client hangs up."""
        connection = http.client.HTTPConnection(self._server.http, timeout=PATIENCE)
        try:
            question = json.dumps(LONG | {"steps": 50})
            connection.request("POST", f"/v2/models/{STREAM}/generate_stream", question)
            time.sleep(self._random.uniform(0, 0.5))
        finally:
            connection.close()
        self.tally.count("aborted")
