"""The streaming model on the real server: over gRPC, and as server-sent events over HTTP."""

import json
import queue

import numpy as np
import pytest
from support.triton_requests import arrays

from scripts.triton.client import infer_inputs, triton

MODEL = "ideogram4_stream"


def stream(server, requests, header=None):
    """All responses to the requests, sent at once over one gRPC stream: {request id: [outputs or error, …]}."""
    client, _ = triton("grpc")
    answers = queue.Queue()
    responses = {str(index): [] for index in range(len(requests))}
    with client.InferenceServerClient(server.grpc) as connection:
        connection.start_stream(lambda result, error: answers.put((result, error)), headers=header)
        for index, inputs in enumerate(requests):
            connection.async_stream_infer(
                MODEL, infer_inputs(client, inputs), request_id=str(index), enable_empty_final_response=True
            )
        left = len(requests)
        while left:
            result, error = answers.get(timeout=60)
            if error:
                return error
            response = result.get_response()
            if response.outputs:
                responses[response.id].append(arrays(result))
            left -= response.parameters["triton_final_response"].bool_param
    return responses


def test_progress_after_each_step_then_the_picture(server, pipeline):
    [responses] = stream(server, [{"prompt": "a cat", "seed": 3, "steps": 4}]).values()
    *progress, last = responses
    assert [(int(r["step"][0, 0]), int(r["total_steps"][0, 0])) for r in progress] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(set(r) == {"step", "total_steps"} for r in progress)
    assert set(last) == {"step", "total_steps", "image", "seed", "metadata"}
    assert np.array_equal(last["image"], pipeline.generate("a cat", seed=3, steps=4).images)


def test_several_requests_share_a_stream(server, pipeline):
    requests = [{"prompt": "x", "seed": seed, "steps": 2, "num_images": count} for seed, count in ((1, 1), (2, 2))]
    responses = stream(server, requests)
    for index, inputs in enumerate(requests):
        *progress, last = responses[str(index)]
        assert len(progress) == 2
        assert np.array_equal(last["image"], pipeline.generate(**inputs).images)


def test_bad_input(server):
    error = stream(server, [{"prompt": "x", "steps": 0}])
    assert error.message() == "the number of steps is 0, wanted 1 to 1000"
    error = stream(server, [{"prompt": "x", "steps": 0}], {"triton_grpc_error": "true"})
    assert error.status() == "StatusCode.INVALID_ARGUMENT"


def test_unary_call_is_refused_by_the_server(server):
    """Triton's own rule, which the client script relies on."""
    client, refusal = triton("http")
    with client.InferenceServerClient(server.http) as connection, pytest.raises(refusal, match="decoupled"):
        connection.infer(MODEL, infer_inputs(client, {"prompt": "x"}))


def test_server_sent_events(server, pipeline):
    import http.client

    connection = http.client.HTTPConnection(server.http, timeout=60)
    question = {"prompt": "x", "seed": 5, "steps": 2}
    connection.request("POST", f"/v2/models/{MODEL}/generate_stream", json.dumps(question))
    lines = connection.getresponse().read().decode().split("\n\n")
    events = [json.loads(line.removeprefix("data:")) for line in lines if line]
    assert [(e["step"], e["total_steps"]) for e in events] == [(1, 2), (2, 2), (2, 2)]
    image = np.array(events[-1]["image"], np.uint8).reshape(128, 128, 3)
    assert np.array_equal(image, pipeline.generate("x", seed=5, steps=2).images[0])
