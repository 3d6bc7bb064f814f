"""Many clients at once on the real server."""

import concurrent.futures
import queue

import numpy as np
import pytest
from support.triton_requests import PROTOCOLS, arrays, connect, wait_for_metrics

from scripts.triton.client import infer_inputs, triton
from scripts.triton.server import serve

PROMPTS = ("x", "a red circle on a blue background", '{"high_level_description": "two cats"}')


def request_of(number):
    """The inputs of the request with this number; no two are the same."""
    sizes = ({}, {"width": 320}, {"height": 272})
    return {"prompt": PROMPTS[number % 3], "seed": number, "steps": 1 + number % 2, **sizes[number % 5 % 3]}


def test_200_requests_from_8_clients(server, pipeline):
    """None is lost, none gets another's picture: every picture is compared with the pipeline's for that seed."""
    numbers = queue.SimpleQueue()
    for number in range(200):
        numbers.put(number)

    def work(protocol):
        client = triton(protocol)[0]
        answers = {}
        with connect(server, protocol) as connection:
            while True:
                try:
                    number = numbers.get_nowait()
                except queue.Empty:
                    return answers
                answers[number] = arrays(connection.infer("ideogram4", infer_inputs(client, request_of(number))))

    answers = {}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for part in pool.map(work, [PROTOCOLS[client % 2] for client in range(8)]):
            answers |= part
    assert sorted(answers) == list(range(200))
    for number, made in answers.items():
        assert made["seed"].tolist() == [[number]]
        assert np.array_equal(made["image"], pipeline.generate(**request_of(number)).images), number


@pytest.mark.parametrize("options", [{}, {"dynamic_batching": True, "queue_delay": 1000}], ids=["plain", "batching"])
def test_two_instances(altered, pipeline, options):
    """Both take part: each notes its name."""
    code = """
from pathlib import Path

class TritonPythonModel(TritonPythonModel):
    def initialize(self, args):
        super().initialize(args)
        self.mark = Path(args["model_repository"], args["model_instance_name"])

    def execute(self, requests):
        self.mark.touch()
        return super().execute(requests)
"""
    repository = altered(code, instances=2, **options)
    with serve(repository) as server:
        client = triton("grpc")[0]

        def one(seed):
            inputs = {"prompt": PROMPTS[seed % 2], "seed": seed, "steps": 2}
            with connect(server, "grpc") as connection:
                return inputs, arrays(connection.infer("ideogram4", infer_inputs(client, inputs)))

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for inputs, made in pool.map(one, range(20)):
                assert np.array_equal(made["image"], pipeline.generate(**inputs).images)
        # 20, and a warm-up for each instance
        wait_for_metrics(server, 'ideogram4_requests_total{model="ideogram4",outcome="ok"} 22')
        assert {mark.name for mark in (repository / "ideogram4").glob("ideogram4_*")} == {
            "ideogram4_0_0",
            "ideogram4_0_1",
        }
