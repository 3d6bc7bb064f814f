"""Two devices: where the graphs go, and that the transformers run at the same time. No GPU is needed for that."""

import re
import threading
from dataclasses import replace

import numpy as np
import pytest
from support.engines.bundles import ACTIVATIONS, FP8_WEIGHTS, GB, STAGES, engine_set, manifest

from runtime import Pipeline
from runtime.backend import opening as backend
from runtime.backend.machine import Machine
from runtime.backend.placement import parse_devices, place, together
from runtime.cli.main import main
from runtime.errors import BackendError
from runtime.tensorrt.cuda import Gpu
from runtime.tensorrt.memory_plan import OVERHEAD

FAST = {"steps": 3, "guidance": 3.0, "seed": 3}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0,1", ("cuda:0", "cuda:1")),
        ("cuda:2, cuda:0", ("cuda:2", "cuda:0")),
        ("cpu,cpu", ("cpu", "cpu")),
        ("cuda,1", ("cuda", "cuda:1")),
    ],
)
def test_parse(text, wanted):
    assert parse_devices(text) == wanted


@pytest.mark.parametrize("text", ["", "0", "0,1,2", "0,", ","])
def test_not_two(text):
    with pytest.raises(ValueError, match="wanted two, as in 0,1"):
        parse_devices(text)


@pytest.mark.parametrize("text", ["1,1", "cuda,0", "cuda:0,0"])
def test_one_gpu_twice(text):
    with pytest.raises(ValueError, match="which is one GPU twice; wanted two"):
        parse_devices(text)


def test_transformers_are_apart():
    graphs = ("text_encoder", "dit_cond", "vae_decoder", "dit_uncond", "vae_encoder")
    assert place(graphs, ("a", "b")) == {
        "text_encoder": "b",
        "dit_cond": "a",
        "vae_decoder": "a",
        "dit_uncond": "b",
        "vae_encoder": "a",
    }


SETS = (engine_set(targets=("sm89",)), engine_set(targets=("sm120",)))
TWO = ("cuda:0", "cuda:1")


@pytest.fixture
def gpus(monkeypatch):
    """gpus(capability and free bytes of each GPU): what the machine has."""

    def install(*found):
        def look(index, backends):
            if index >= len(found):
                return Machine(None, f"this machine has {len(found)} CUDA devices, and there is no cuda:{index}")
            capability, free = found[index]
            return Machine(Gpu(index, f"card {index}", capability, 13000, free, free), "", (("rtx", "1.7.1.116"),))

        monkeypatch.setattr(backend, "look", look)

    return install


def test_memory_is_planned_for_each_device(gpus):
    """Cards of 16 GB: each holds a transformer, and the second one the text encoder at another time."""
    gpus(("sm89", 15 * GB), ("sm89", 15 * GB))
    placed = place(STAGES, TWO)
    choices = backend.choose_placed(manifest(SETS[0]), placed)
    assert (choices["cuda:0"].memory.level, choices["cuda:1"].memory.level) == ("resident", "staged")
    assert choices["cuda:0"].memory.groups == (("dit_cond", "vae_decoder"),)
    assert choices["cuda:1"].memory.groups == (("text_encoder",), ("dit_uncond",))
    weights = FP8_WEIGHTS["dit_cond"] + FP8_WEIGHTS["vae_decoder"]
    assert choices["cuda:0"].memory.needed == weights + ACTIVATIONS["vae_decoder"] + OVERHEAD
    chosen = together(choices, placed, TWO)
    assert (chosen.backend, chosen.device, chosen.engines.label) == ("rtx", "cuda:0,cuda:1", "rtx engines for sm89")
    assert "on card 0 (sm89); resident" in chosen.reason and "on card 1 (sm89); staged" in chosen.reason


def test_two_kinds_of_cards_get_their_own_engines(gpus):
    gpus(("sm120", 40 * GB), ("sm89", 40 * GB))
    placed = place(STAGES, TWO)
    chosen = together(backend.choose_placed(manifest(*SETS), placed, "rtx"), placed, TWO)
    folders = {stage: spec.plan.split("/")[1] for stage, spec in chosen.engines.graphs.items()}
    assert folders == {
        "text_encoder": "rtx-sm89",
        "dit_uncond": "rtx-sm89",
        "dit_cond": "rtx-sm120",
        "vae_decoder": "rtx-sm120",
    }
    assert set(chosen.engines.targets) == {"sm89", "sm120"}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([("sm89", 40 * GB), ("sm75", 40 * GB)], "cuda:1: the GPU card 1 is sm75, and the .* are for sm89; build them"),
        ([("sm75", 40 * GB), ("sm89", 40 * GB)], "cuda:0: the GPU card 0 is sm75, and the .* are for sm89; build them"),
        ([("sm89", 40 * GB)], "cuda:1: this machine has 1 CUDA devices, and there is no cuda:1"),
    ],
)
def test_a_device_that_cannot(gpus, found, message):
    """Engines that are asked for, or all that there is, are an error; else both devices run the graphs."""
    gpus(*found)
    placed = place(STAGES, TWO)
    for wanted, graphs in (("rtx", True), ("auto", False)):
        with pytest.raises(RuntimeError, match=message):
            backend.choose_placed(manifest(SETS[0], onnx=graphs), placed, wanted)
    chosen = together(backend.choose_placed(manifest(SETS[0]), placed), placed, TWO)
    assert (chosen.backend, chosen.engines) == ("ort", None)
    assert re.match(message.replace(", and the .* are for sm89; build them", ""), chosen.reason)


@pytest.mark.parametrize("wanted", ["auto", "rtx"])
def test_a_device_that_lacks_memory(gpus, wanted):
    """Nothing moves to the CPU for that, on either device."""
    gpus(("sm89", 40 * GB), ("sm89", 5 * GB))
    message = r"cuda:1: the rtx engines for sm89 need .* 5.0 GB of device memory are free; close other programs .* ort"
    with pytest.raises(BackendError, match=message):
        backend.choose_placed(manifest(SETS[0]), place(STAGES, TWO), wanted)


class Meeting:
    """Two fake transformers that answer only when both are being asked, and note the threads that asked."""

    def __init__(self):
        self.barrier = threading.Barrier(2, timeout=20)
        self.threads = {"dit_cond": set(), "dit_uncond": set()}
        self.waiting = True

    def graph(self, name, real):
        def run(**feeds):
            if self.waiting:
                self.barrier.wait()
            self.threads[name].add(threading.get_ident())
            return real(**feeds)

        return run


@pytest.fixture
def opened(monkeypatch):
    """Which graph was opened on which device; every device name becomes the CPU underneath."""
    seen = {}
    real = backend.open_graphs

    def open_graphs(manifest, directory, stages, choice, threads, most, cuda_graphs):
        seen.update(dict.fromkeys(stages, choice.device))
        return real(manifest, directory, stages, replace(choice, device="cpu"), threads)

    monkeypatch.setattr(backend, "open_graphs", open_graphs)
    return seen


def test_graphs_are_opened_where_they_belong(demo_bundle, opened):
    two = Pipeline.load(demo_bundle, devices=("cuda:0", "cuda:1"), vae_graphs=("vae_decoder",))
    assert opened == {"text_encoder": "cuda:1", "dit_cond": "cuda:0", "vae_decoder": "cuda:0", "dit_uncond": "cuda:1"}
    assert two.generate("x", **FAST).used["device"] == "cuda:0,cuda:1"


def test_passes_overlap_and_the_picture_is_the_same(demo_bundle):
    """Each pass waits for the other: one after the other would never end. The sum is the same, bit for bit."""
    one, two = Pipeline.load(demo_bundle), Pipeline.load(demo_bundle, devices=("cpu", "cpu"))
    meeting = Meeting()
    for name in meeting.threads:
        two.graphs[name] = meeting.graph(name, two.graphs[name])
    made = two.generate("x", **FAST)
    assert np.array_equal(made.images, one.generate("x", **FAST).images)
    assert not meeting.threads["dit_cond"] & meeting.threads["dit_uncond"]


def test_one_device_runs_one_after_the_other(demo_bundle):
    one = Pipeline.load(demo_bundle)
    meeting = Meeting()
    meeting.waiting = False
    for name in meeting.threads:
        one.graphs[name] = meeting.graph(name, one.graphs[name])
    one.generate("x", **FAST)
    assert meeting.threads["dit_cond"] == meeting.threads["dit_uncond"] == {threading.get_ident()}


@pytest.mark.parametrize("broken", ["dit_cond", "dit_uncond"])
def test_failure_of_either_pass_is_told(demo_bundle, broken):
    two = Pipeline.load(demo_bundle, devices=("cpu", "cpu"))

    def fail(**feeds):
        raise RuntimeError(f"graph {broken} failed")

    two.graphs[broken] = fail
    before = threading.active_count()
    with pytest.raises(RuntimeError, match=f"graph {broken} failed"):
        two.generate("x", **FAST)
    assert threading.active_count() == before


def test_one_transformer_needs_one_device(demo_bundle):
    with pytest.raises(ValueError, match="devices cpu,cpu are for two transformers, and only one is loaded"):
        Pipeline.load(demo_bundle, devices=("cpu", "cpu"), unconditional=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--devices", "0"), "devices is '0', wanted two, as in 0,1"),
        (("--devices", "1,1"), "which is one GPU twice"),
        (("--devices", "cpu,cpu", "--guidance", "1"), "are for two transformers, and only one is loaded"),
        (("--devices", "0,1", "--device", "cpu"), "devices cuda:0,cuda:1 and device cpu exclude each other"),
        (("--devices", "0,1", "--backend", "rtx"), "cuda:1: the bundle holds no rtx engines, but none at all"),
        (("--devices", "0,cpu", "--backend", "rtx"), "device is 'cpu', and rtx runs on GPUs only"),
        (("--devices", "cpu,tpu"), "device is 'tpu', wanted"),
    ],
)
def test_command_refuses(demo_bundle, tmp_path, capsys, arguments, message):
    arguments = ["--prompt", "x", "--steps", "1", "--output", str(tmp_path / "a.png"), *arguments]
    assert main(["--bundle", str(demo_bundle), *arguments]) == 1
    assert message in capsys.readouterr().err and list(tmp_path.iterdir()) == []
