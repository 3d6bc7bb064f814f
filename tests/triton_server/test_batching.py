"""Dynamic batching on the real server: what runs together, and what one request must not do to another."""

import concurrent.futures
import json
import urllib.request

import numpy as np
import pytest
from support.triton_requests import ask, metrics, wait_for

from scripts.triton.client import triton
from scripts.triton.server import serve

COUNT_RUNS = """
import json
from pathlib import Path

class TritonPythonModel(TritonPythonModel):
    def initialize(self, args):
        super().initialize(args)
        run = self.engine.pipeline.run
        log = Path(args["model_repository"], "runs.json")
        runs = []
        def noted(plan, *rest, **more):
            runs.append(plan.num_images)
            log.write_text(json.dumps(runs))
            return run(plan, *rest, **more)
        self.engine.pipeline.run = noted

    def execute(self, requests):
        with Path(__file__).with_name("batches.txt").open("a") as log:
            print(len(requests), file=log)
        return super().execute(requests)
"""
"""Notes how many pictures each run makes, and how many requests Triton hands over at a time."""


@pytest.fixture
def batching(altered):
    """A repository with dynamic batching that waits long enough for requests to come together."""
    repository = altered(COUNT_RUNS, dynamic_batching=True, queue_delay=2_000_000, max_batch=4)
    with serve(repository) as server:
        yield server, repository / "ideogram4"


def together(server, requests):
    """The outcomes of requests that are sent at once: outputs, or the exception."""
    refusal = triton("grpc")[1]

    def one(inputs):
        try:
            return ask(server, "grpc", **inputs)
        except refusal as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(one, requests))


def test_bad_request_does_not_fail_its_neighbours(batching, pipeline):
    server, model = batching
    requests = [{"prompt": "a cat", "seed": seed, "steps": steps} for seed, steps in ((1, 2), (2, 0), (3, 2), (4, 3))]
    outcomes = together(server, requests)
    assert "4" in (model / "1" / "batches.txt").read_text().split(), "Triton handed over all four at once"
    assert isinstance(outcomes[1], Exception) and "number of steps is 0" in outcomes[1].message()
    for index in (0, 2, 3):
        assert np.array_equal(outcomes[index]["image"], pipeline.generate(**requests[index]).images)
    runs = json.loads((model / "runs.json").read_text())
    assert sorted(runs[-2:]) == [1, 2], "seeds 1 and 3 ran together, the one with other steps alone"


def test_what_a_stage_raises_fails_only_whom_it_concerns(altered, pipeline):
    """A run of two pictures fails as it would for want of memory; each alone does not, except one."""
    code = """
class TritonPythonModel(TritonPythonModel):
    def initialize(self, args):
        super().initialize(args)
        real = self.engine.pipeline.run
        def run(plan, *rest, **more):
            if plan.num_images > 1 or plan.seed == 2:
                raise RuntimeError("out of memory")
            return real(plan, *rest, **more)
        self.engine.pipeline.run = run
"""
    repository = altered(code, dynamic_batching=True, queue_delay=2_000_000, max_batch=3)
    requests = [{"prompt": "a cat", "seed": seed, "steps": 2} for seed in (1, 2, 3)]
    with serve(repository) as server:
        outcomes = together(server, requests)
        assert outcomes[1].message() == "out of memory" and outcomes[1].status() == "StatusCode.INTERNAL"
        for index in (0, 2):
            assert np.array_equal(outcomes[index]["image"], pipeline.generate(**requests[index]).images)
        assert urllib.request.urlopen(f"http://{server.http}/v2/models/ideogram4/ready").status == 200


def test_queue_limit(altered):
    """One request is being made, one waits; a third is refused at once."""
    code = """
import time
from pathlib import Path

class TritonPythonModel(TritonPythonModel):
    def execute(self, requests):
        gate = Path(__file__).with_name("gate")
        Path(__file__).with_name("begun").touch()
        while gate.exists():
            time.sleep(0.01)
        return super().execute(requests)
"""
    repository = altered(code, dynamic_batching=True, queue_limit=1, max_batch=1)
    with serve(repository) as server, concurrent.futures.ThreadPoolExecutor(2) as pool:
        version = repository / "ideogram4" / "1"
        (version / "begun").unlink()  # the warm-up's
        (version / "gate").touch()
        try:
            first = pool.submit(ask, server, prompt="x", steps=1)
            wait_for((version / "begun").exists)
            second = pool.submit(ask, server, prompt="x", steps=1)
            waiting = 'nv_inference_pending_request_count{model="ideogram4",version="1"} 1\n'
            wait_for(lambda: waiting in metrics(server))
            with pytest.raises(triton("http")[1], match="Exceeds maximum queue size") as caught:
                ask(server, prompt="x", steps=1)
            assert caught.value.status() == "503"
        finally:
            (version / "gate").unlink()
        assert "image" in first.result() and "image" in second.result()
