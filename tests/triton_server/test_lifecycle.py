"""Loading, unloading, dying and stopping, on the real server."""

import json
import os
import queue
import shutil
import signal
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from support.triton_requests import PATIENCE, ask, connect, wait_for

from export.triton.__main__ import generate
from export.triton.config import ModelConfig
from runtime import Pipeline
from scripts.triton.client import infer, infer_inputs, stream_grpc, triton
from scripts.triton.server import LOAD_ALL, model_processes, serve

NO_CONTROL = ("--model-control-mode=none",)


def ready(server, model="ideogram4"):
    """What a probe sees."""
    try:
        return urllib.request.urlopen(f"http://{server.http}/v2/models/{model}/ready").status == 200
    except urllib.error.HTTPError:
        return False


NOTE_RUNS = """
import json
from pathlib import Path

class TritonPythonModel(TritonPythonModel):
    def initialize(self, args):
        super().initialize(args)
        run = self.engine.pipeline.run
        log = Path(args["model_repository"], "runs.json")
        def noted(plan, *rest, **more):
            log.write_text(json.dumps([plan.prompt, len(plan.steps), plan.width]))
            return run(plan, *rest, **more)
        self.engine.pipeline.run = noted
"""


def test_warm_up_before_ready(altered):
    """One step at the default size has been made when the server is ready, without a request."""
    repository = altered(NOTE_RUNS, stream=True)
    with serve(repository):
        for model in ("ideogram4", "ideogram4_stream"):
            assert json.loads((repository / model / "runs.json").read_text()) == ["warm-up", 1, 128]


def test_explicit_load_and_unload(repository, pipeline):
    with serve(repository, ["--model-control-mode=explicit"]) as server, connect(server, "http") as connection:
        assert not ready(server) and not model_processes(server)
        connection.load_model("ideogram4")
        assert ready(server) and not ready(server, "ideogram4_stream") and len(model_processes(server)) == 1
        made = ask(server, prompt="x", seed=1, steps=1)
        assert np.array_equal(made["image"], pipeline.generate("x", seed=1, steps=1).images)
        connection.unload_model("ideogram4")
        wait_for(lambda: not model_processes(server))
        assert not ready(server)
        connection.load_model("ideogram4")
        assert np.array_equal(ask(server, prompt="x", seed=1, steps=1)["image"], made["image"])


def test_killed_model_process_comes_back_by_unload_and_load(repository, pipeline):
    """The server never starts it again by itself. The README of the repository says how to."""
    with serve(repository) as server, connect(server, "http") as connection:
        wanted = pipeline.generate("x", seed=1, steps=1).images
        connection.unload_model("ideogram4_stream")
        wait_for(lambda: len(model_processes(server)) == 1)
        os.kill(model_processes(server)[0], signal.SIGKILL)
        with pytest.raises(triton("http")[1], match=r"Stub process .* is not healthy"):
            ask(server, prompt="x", seed=1, steps=1)
        connection.unload_model("ideogram4")
        wait_for(lambda: not ready(server))
        connection.load_model("ideogram4")
        assert np.array_equal(ask(server, prompt="x", seed=1, steps=1)["image"], wanted)


BREAKS = """
from pathlib import Path

class TritonPythonModel(TritonPythonModel):
    def initialize(self, args):
        super().initialize(args)
        real = self.engine.pipeline.graphs["dit_cond"]
        broken = Path(args["model_repository"], "broken")
        def graph(**feeds):
            if broken.exists():
                raise RuntimeError("CUDA error 700")
            return real(**feeds)
        self.engine.pipeline.graphs["dit_cond"] = graph
"""
"""From a moment on every call fails, as after an error that leaves a CUDA context unusable."""


@pytest.mark.parametrize("model", ["ideogram4", "ideogram4_stream"])
def test_failed_engine_makes_the_model_not_ready(altered, model):
    repository = altered(BREAKS, stream=True)
    # Triton 2.51 now and then never ends the process of a model that asked to be unloaded, and then waits for it.
    with serve(repository, exit_patience=2) as server:
        assert answer_to(server, model) == "picture"
        (repository / model / "broken").touch()
        assert "the engine failed: CUDA error 700; since then: CUDA error 700" in answer_to(server, model)
        wait_for(lambda: not ready(server, model))
        other = {"ideogram4": "ideogram4_stream", "ideogram4_stream": "ideogram4"}[model]
        assert ready(server, other) and answer_to(server, other) == "picture"
        (repository / model / "broken").unlink()
        with connect(server, "http") as connection:
            connection.load_model(model)
        assert answer_to(server, model) == "picture"


def test_failed_engine_without_explicit_control_answers_unavailable(altered):
    """Such a server unloads nothing; the model goes on refusing instead of making pictures of what is broken."""
    repository = altered(BREAKS, unload=False)
    with serve(repository, NO_CONTROL) as server:
        (repository / "ideogram4" / "broken").touch()
        with pytest.raises(triton("http")[1], match="the engine failed: CUDA error 700; since then") as caught:
            ask(server, prompt="x", steps=1)
        assert caught.value.status() == "503"
        (repository / "ideogram4" / "broken").unlink()
        with pytest.raises(triton("http")[1], match="the engine failed: CUDA error 700; since then"):
            ask(server, prompt="x", steps=1)


def answer_to(server, model):
    """What comes of the smallest request: ``picture``, or what the server says."""
    address = server.grpc if model.endswith("stream") else server.http
    inputs = {"prompt": "x", "steps": 1}
    try:
        if model.endswith("stream"):
            stream_grpc(address, model, inputs, PATIENCE, lambda done, total: None)
        else:
            infer("http", address, model, inputs, PATIENCE)
    except RuntimeError as error:
        return str(error)
    return "picture"


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_damaged_bundle_is_never_ready(altered, damage):
    repository = altered("")
    configuration = repository / "ideogram4" / "config.pbtxt"
    text = configuration.read_text()
    [bundle] = [
        json.loads(line.split("string_value: ")[1].split(" }")[0]) for line in text.splitlines() if '"bundle"' in line
    ]
    own = repository / "ideogram4" / "1" / "bundle"
    if damage == "altered":
        shutil.copytree(bundle, own)
        weights = own / "onnx" / "weights" / "dit_cond.data"
        data = bytearray(weights.read_bytes())
        data[1000] ^= 1
        weights.write_bytes(data)
    configuration.write_text(text.replace(f'"{bundle}"', '"bundle"'))
    message = {"missing": "there is no bundle directory", "altered": "dit_cond.data is altered: SHA-256"}[damage]
    with pytest.raises(RuntimeError, match=message), serve(repository):
        pass


@pytest.mark.parametrize("stream", [False, True])
def test_model_that_cannot_make_a_picture_is_never_ready(altered, stream):
    """It is tried while loading. (When Triton's own warm-up is what fails, Triton 2.51 may crash.)"""
    code = """
import runtime.pipeline

def run(*arguments, **more):
    raise RuntimeError("no memory for a picture")

runtime.pipeline.Pipeline.run = run
"""
    with pytest.raises(RuntimeError, match="no memory for a picture"), serve(altered(code, stream=stream)):
        pass


def test_bundle_without_an_unconditional_transformer(demo_bundle, tmp_path):
    """It loads, and asks the client to choose what guidance means, as trt-generate does."""
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["graphs"]["dit_uncond"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    generate(bundle, tmp_path / "repository", ModelConfig(threads=1), quiet=True)
    with serve(tmp_path / "repository") as server:
        wanted = Pipeline.load(bundle, threads=1).generate("x", seed=1, steps=2, unconditional="off")
        assert np.array_equal(ask(server, prompt="x", seed=1, steps=2, unconditional="off")["image"], wanted.images)
        with pytest.raises(triton("http")[1], match="this bundle has none; choose guidance 1"):
            ask(server, prompt="x", steps=2)


def test_configuration_for_cpus(repository, pipeline):
    with serve(repository, [*LOAD_ALL, "--model-config-name=cpu"]) as server:
        made = ask(server, prompt="x", seed=1, steps=1)
        assert np.array_equal(made["image"], pipeline.generate("x", seed=1, steps=1).images)
        with connect(server, "http") as connection:
            [group] = connection.get_model_config("ideogram4")["instance_group"]
        assert group["kind"] == "KIND_CPU"


def test_server_without_metrics(repository):
    with serve(repository, [*LOAD_ALL, "--allow-metrics=false"]) as server:
        assert "image" in ask(server, prompt="x", steps=1)


def test_only_the_repository_is_needed(repository, tmp_path):
    """The models' code comes from the repository even where the project is installed."""
    code = 'import runtime, serving\nprint("imported from", runtime.__file__, serving.__file__, flush=True)\n'
    copy = Path(shutil.copytree(repository, tmp_path / "copy"))
    for file in copy.glob("*/1/model.py"):
        file.write_text(file.read_text() + code)
    with serve(copy) as server:
        lines = [line for line in server.log.read_text().splitlines() if line.startswith("imported from")]
        assert len(lines) == 2 and all(line.count(str(copy)) == 2 for line in lines)


def test_stop_in_the_middle_of_a_request(altered, pipeline):
    """SIGTERM: the picture is finished, the server ends by itself, and leaves no process."""
    repository = altered(NOTE_RUNS)
    with serve(repository) as server:
        answers = queue.Queue()
        inputs = {"prompt": "x", "seed": 2, "steps": 100}
        thread = threading.Thread(target=lambda: answers.put(ask(server, "grpc", **inputs)))
        thread.start()
        log = repository / "ideogram4" / "runs.json"
        wait_for(lambda: '"x"' in log.read_text())
        processes = model_processes(server)
        server.process.send_signal(signal.SIGTERM)
        made = answers.get(timeout=PATIENCE)
        thread.join()
        assert np.array_equal(made["image"], pipeline.generate(**inputs).images)
        assert server.process.wait(PATIENCE) == 0
        wait_for(lambda: not any(Path(f"/proc/{process}").exists() for process in processes))


def test_stop_that_cannot_wait(altered):
    """A request that takes longer than the server may: the server does not end by itself (Triton 2.51 waits beyond
    its own time limit), is killed with all its processes as Kubernetes does it, and the client has an error.
    """
    repository = altered(NOTE_RUNS)
    answers = queue.Queue()
    client, _ = triton("grpc")
    with serve(repository, exit_patience=1) as server:
        connection = connect(server, "grpc")
        inputs = infer_inputs(client, {"prompt": "x", "steps": 1000, "width": 512, "height": 512})
        connection.async_infer("ideogram4", inputs, lambda result, error: answers.put(error))
        wait_for(lambda: '"x"' in (repository / "ideogram4" / "runs.json").read_text())
        processes = [server.process.pid, *model_processes(server)]
        assert len(processes) == 2
    assert answers.get(timeout=PATIENCE).status() == "StatusCode.UNAVAILABLE"
    connection.close()
    wait_for(lambda: not any(Path(f"/proc/{process}").exists() for process in processes))


NAN = """
import numpy as np

class TritonPythonModel(TritonPythonModel):
    def initialize(self, args):
        super().initialize(args)
        real = self.engine.pipeline.graphs["dit_cond"]
        self.calls = 0
        def graph(**feeds):
            self.calls += 1
            return real(**feeds) * np.float32(1 if self.calls == 1 else np.nan)
        self.engine.pipeline.graphs["dit_cond"] = graph
"""
"""The warm-up's step is good; after it every value is NaN."""


def test_a_model_that_gives_nan_for_every_request_is_not_ready(altered):
    repository = altered(NAN)
    with serve(repository, exit_patience=2) as server:
        assert ready(server)
        for _ in range(2):
            assert "NaN" in answer_to(server, "ideogram4") and ready(server)
        assert "the engine failed" in answer_to(server, "ideogram4")
        wait_for(lambda: not ready(server))
