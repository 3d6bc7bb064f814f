"""Answers for which the shared memory is too small, on the real server."""

import json
import queue
import urllib.request
from functools import partial

import numpy as np
import pytest
from support.triton_requests import PATIENCE, ask, connect, wait_for_metrics

from scripts.triton.client import infer_inputs, triton
from scripts.triton.server import serve

FULL = """
import os

class Status:
    f_bavail, f_frsize = 5, 1 << 20

os.statvfs = lambda place: Status
"""
"""Five megabytes are left, whatever there is: a limit that each of several servers can have here."""

BREAKS = """
import resource, signal

class TritonPythonModel(TritonPythonModel):
    def execute(self, requests):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, resource.RLIM_INFINITY))
        return super().execute(requests)
"""
"""The shared memory is a file that cannot grow beyond 4 MB, and nobody can know that beforehand."""
SMALL = {"prompt": "x", "seed": 1, "steps": 1}
LARGE = SMALL | {"num_images": 48, "width": 256, "height": 256}
"""9.4 MB of pixels."""


def test_an_answer_that_is_too_large_fails_alone(altered, pipeline):
    """Three requests that Triton hands over together."""
    repository = altered(FULL, dynamic_batching=True, queue_delay=1_000_000, max_batch=4)
    with serve(repository) as server:
        client, _ = triton("grpc")
        answers = queue.Queue()
        with connect(server, "grpc") as connection:
            for number, inputs in enumerate((SMALL, LARGE, SMALL)):
                connection.async_infer(
                    "ideogram4",
                    infer_inputs(client, inputs),
                    partial(lambda number, result, error: answers.put((number, result, error)), number),
                )
            told = {}
            for _ in range(3):
                number, result, error = answers.get(timeout=PATIENCE)
                told[number] = result, error
        wanted = pipeline.generate(**SMALL).images
        for number in (0, 2):
            assert np.array_equal(told[number][0].as_numpy("image"), wanted)
        assert "shared memory (/dev/shm) has 5 MB left" in told[1][1].message()
        total = 'ideogram4_requests_total{model="ideogram4",outcome='
        wait_for_metrics(server, total + '"failed"} 1', total + '"ok"} 3')  # two, and the warm-up
    assert server.process.returncode == 0


def test_a_stream_whose_pictures_are_too_large_ends(altered):
    with serve(altered(FULL, stream=True)) as server:
        url = f"http://{server.http}/v2/models/ideogram4_stream/generate_stream"
        with urllib.request.urlopen(url, json.dumps(LARGE).encode(), timeout=PATIENCE) as answer:
            assert "shared memory (/dev/shm) has 5 MB left" in answer.read().decode()
        assert "image" in ask(server, **SMALL)
    assert server.process.returncode == 0


def test_a_process_that_cannot_answer_goes(altered):
    """Its clients are told, and the server can stop; before, they waited for ever."""
    with serve(altered(BREAKS)) as server:
        assert "image" in ask(server, **SMALL)
        with pytest.raises(triton("http")[1], match="Stub process"):
            ask(server, **LARGE)
