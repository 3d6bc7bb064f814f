"""What a request may ask for, and how long it may take, on the real server."""

import json
import queue
import urllib.error
import urllib.request

import numpy as np
import pytest
from support.triton_requests import PATIENCE, PROTOCOLS, ask, connect

from scripts.triton.client import infer_inputs, triton
from scripts.triton.server import serve

SLOW = """
import time

class TritonPythonModel(TritonPythonModel):
    def initialize(self, args):
        super().initialize(args)
        real = self.engine.pipeline.graphs["dit_cond"]
        def graph(**feeds):
            time.sleep(0.05)
            return real(**feeds)
        self.engine.pipeline.graphs["dit_cond"] = graph
"""
FOREVER = {"prompt": "x", "steps": 1000, "guidance": 1.0}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_too_much_work_is_refused_at_once(server, protocol):
    with pytest.raises(triton(protocol)[1], match="64 pictures of 512x512 in up to 1000 steps"):
        ask(server, protocol, width=512, height=512, num_images=64, **FOREVER | {"guidance": 3.0})


def test_a_long_prompt_is_refused(server):
    with pytest.raises(
        triton("grpc")[1], match="the input 'prompt' has 10485760 bytes, wanted at most 65536"
    ) as refusal:
        ask(server, "grpc", prompt="a " * (5 << 20))
    assert "INVALID_ARGUMENT" in str(refusal.value.status())


@pytest.mark.parametrize("stream", [False, True])
def test_requests_end_in_time(altered, stream):
    """By their own parameter, and by the operator's limit. Without them each takes a minute."""
    told = "the request has taken as long as it may"
    with serve(altered(SLOW, stream=True, max_seconds=2)) as server:
        for more in ({"timeout": 300_000}, {}):
            if stream:
                url, body = (
                    f"http://{server.http}/v2/models/ideogram4_stream/generate_stream",
                    json.dumps(FOREVER | more),
                )
                with urllib.request.urlopen(url, body.encode(), timeout=PATIENCE) as answer:
                    assert told in answer.read().decode()
                continue
            client, refusal = triton("grpc")
            with connect(server, "grpc") as connection, pytest.raises(refusal, match=told) as refused:
                connection.infer("ideogram4", infer_inputs(client, FOREVER), **more)
            assert "UNAVAILABLE" in str(refused.value.status())
        assert "image" in ask(server, prompt="x", steps=1)


def test_a_long_value_does_not_end_a_stream(server):
    """gRPC carries messages in headers. The second request goes through the same stream."""
    client, _ = triton("grpc")
    answers = queue.Queue()
    with connect(server, "grpc") as connection:
        connection.start_stream(lambda result, error: answers.put((result, error)))
        inputs = infer_inputs(client, {"prompt": "x", "preset": "ä" * 30_000})
        connection.async_stream_infer("ideogram4_stream", inputs)
        assert "preset is" in str(answers.get(timeout=PATIENCE)[1])
        connection.async_stream_infer("ideogram4_stream", infer_inputs(client, {"prompt": "x", "steps": 1}))
        result, error = answers.get(timeout=PATIENCE)
        assert error is None and result is not None


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_long_value_is_not_echoed(server, protocol):
    with pytest.raises(triton(protocol)[1], match="preset is 'ää") as refused:
        ask(server, protocol, prompt="x", preset="ä" * 30_000)
    assert len(refused.value.message()) < 600


NOTE_GRAPHS = """
import json
from pathlib import Path

class TritonPythonModel(TritonPythonModel):
    def initialize(self, args):
        super().initialize(args)
        graphs = sorted(self.engine.pipeline.graphs)
        Path(args["model_repository"], "graphs.json").write_text(json.dumps(graphs))
"""


def test_inputs_that_are_not_offered(altered, pipeline):
    """The parts of the VAE that they would need are not loaded."""
    repository = altered(NOTE_GRAPHS, inputs=("prompt", "seed", "steps"))
    with serve(repository) as server:
        made = ask(server, prompt="x", seed=1, steps=1)
        assert np.array_equal(made["image"], pipeline.generate("x", seed=1, steps=1).images)
        with pytest.raises(triton("http")[1], match="unexpected inference input 'width'"):
            ask(server, prompt="x", width=256)
    graphs = json.loads((repository / "ideogram4" / "graphs.json").read_text())
    assert graphs == ["dit_cond", "dit_uncond", "text_encoder", "vae_decoder"]
