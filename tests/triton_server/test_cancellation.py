"""Cancellation on the real server: seen within one step."""

import json
import queue
import threading
import time

import pytest
from support.triton_requests import PATIENCE, ask, connect, wait_for, wait_for_metrics

from scripts.triton.client import infer_inputs, triton
from scripts.triton.server import serve

STEPS = 50

WAIT_IN_STEP_3 = f"""
import json
import time
from pathlib import Path

class TritonPythonModel(TritonPythonModel):
    def initialize(self, args):
        super().initialize(args)
        self.folder = Path(args["model_repository"])
        real = self.engine.pipeline.graphs["dit_cond"]
        self.calls, self.requests = 0, []
        def graph(**feeds):
            self.calls += 1
            (self.folder / "calls.json").write_text(json.dumps(self.calls))
            deadline = time.monotonic() + {PATIENCE}
            while self.calls == 3 and not self.requests[0].is_cancelled() and time.monotonic() < deadline:
                time.sleep(0.01)
            return real(**feeds)
        self.engine.pipeline.graphs["dit_cond"] = graph

    def execute(self, requests):
        self.calls, self.requests = 0, requests
        return super().execute(requests)
"""
"""The third step ends when the model has been told of the cancellation. Whatever steps follow are counted."""


def calls(folder):
    file = folder / "calls.json"
    text = file.read_text() if file.exists() else ""
    return json.loads(text) if text else 0


INPUTS = {"prompt": "x", "steps": STEPS, "guidance": 1.0}  # without guidance a step is one call


def test_unary_over_grpc(altered):
    repository = altered(WAIT_IN_STEP_3)
    with serve(repository) as server:
        client, _ = triton("grpc")
        answer = queue.Queue()
        with connect(server, "grpc") as connection:
            call = connection.async_infer(
                "ideogram4", infer_inputs(client, INPUTS), lambda result, error: answer.put(error)
            )
            wait_for(lambda: calls(repository / "ideogram4") == 3)
            call.cancel()
            assert answer.get(timeout=PATIENCE).status() == "StatusCode.CANCELLED"
        assert_stopped_after_3(server, repository / "ideogram4", "ideogram4")


@pytest.mark.parametrize("how", ["stop_stream", "http"])
def test_stream(altered, how):
    repository = altered(WAIT_IN_STEP_3, stream=True)
    folder = repository / "ideogram4_stream"
    with serve(repository) as server:
        start = {"stop_stream": stream_over_grpc, "http": stream_over_http}[how]
        end = start(server)
        wait_for(lambda: calls(folder) == 3)
        end()
        assert_stopped_after_3(server, folder, "ideogram4_stream")


def stream_over_grpc(server):
    client, _ = triton("grpc")
    connection = client.InferenceServerClient(server.grpc)
    connection.start_stream(lambda result, error: None)
    connection.async_stream_infer("ideogram4_stream", infer_inputs(client, INPUTS))
    return lambda: connection.stop_stream(cancel_requests=True)


def stream_over_http(server):
    import http.client

    connection = http.client.HTTPConnection(server.http, timeout=PATIENCE)
    question = json.dumps(INPUTS)
    connection.request("POST", "/v2/models/ideogram4_stream/generate_stream", question)
    response = connection.getresponse()

    def hang_up():
        response.close()
        connection.close()

    return hang_up


def assert_stopped_after_3(server, folder, model):
    """The model is done with the request, and has made no step after the one in which it was cancelled."""
    wait_for_metrics(server, f'ideogram4_requests_total{{model="{model}",outcome="cancelled"}} 1')
    assert calls(folder) == 3


def test_waiting_request_is_not_begun(altered):
    """It is cancelled while another one is being made."""
    repository = altered(WAIT_IN_STEP_3.replace("self.requests[0].is_cancelled()", "(self.folder / 'go').exists()"))
    with serve(repository) as server:
        client, _ = triton("grpc")
        first = queue.Queue()
        folder = repository / "ideogram4"
        thread = threading.Thread(target=lambda: first.put(ask(server, prompt="x", steps=4, guidance=1.0)))
        thread.start()
        wait_for(lambda: calls(folder) == 3)
        answer = queue.Queue()
        with connect(server, "grpc") as connection:
            call = connection.async_infer(
                "ideogram4", infer_inputs(client, INPUTS), lambda result, error: answer.put(error)
            )
            time.sleep(0.5)  # on its way into the queue; there is nothing to be seen of that
            call.cancel()
            assert answer.get(timeout=PATIENCE).status() == "StatusCode.CANCELLED"
            (folder / "go").touch()
            assert "image" in first.get(timeout=PATIENCE)
        thread.join()
        assert "image" in ask(server, prompt="x", steps=2, guidance=1.0)
        assert calls(folder) == 2
