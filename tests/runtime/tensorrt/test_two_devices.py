"""The two transformers on two GPUs."""

import threading

import numpy as np
import pytest
from support.engines.demo import FAST, FREE, run

from runtime import Pipeline


@pytest.fixture
def two(bundle):
    """The bundle on a machine with two GPUs."""
    bundle.cudart.gpus = 2
    return bundle


def meeting(barrier, function):
    """The function, which waits for another thread first."""

    def run(**feeds):
        barrier.wait()
        return function(**feeds)

    return run


def test_two_devices(two):
    """Each transformer with its own device current, at the same time: each waits for the other one. Bit for bit."""
    barrier = threading.Barrier(2, timeout=20)
    for name in ("dit_cond", "dit_uncond"):
        real = two.trt.stages[name].function
        two.trt.stages[name].function = meeting(barrier, real)
    pipeline = Pipeline.load(two.directory, devices=("cuda:0", "cuda:1"))
    on = {name: graph.device.index for name, graph in pipeline.graphs.items()}
    assert on == {"text_encoder": 1, "dit_cond": 0, "dit_uncond": 1, "vae_decoder": 0}
    assert pipeline.graphs["dit_cond"].engine.package is not pipeline.graphs["dit_uncond"].engine.package
    made = pipeline.generate("a red circle", **FAST)
    assert np.array_equal(
        made.images, Pipeline.load(two.directory, backend="ort").generate("a red circle", **FAST).images
    )
    assert (made.used["backend"], made.used["device"]) == ("rtx", "cuda:0,cuda:1")
    assert two.cudart.allocated_on(0) and two.cudart.allocated_on(1)
    pipeline.close()
    assert not two.cudart.allocated and not two.cudart.pinned


def test_memory_of_two_devices(two):
    """The conditional transformer and the VAE fit together; the text encoder must go before the other transformer."""
    two.cudart.used = FREE["resident"] - 12_000_000
    pipeline = Pipeline.load(two.directory, devices=("cuda:0", "cuda:1"))
    assert "resident: needs" in pipeline.where and "staged: needs" in pipeline.where
    pipeline.generate("x", **FAST)
    loaded = {name: graph.residency.loaded for name, graph in pipeline.graphs.items()}
    assert loaded["dit_cond"] == ("dit_cond", "vae_decoder") and loaded["dit_uncond"] == ("dit_uncond",)
    pipeline.close()
    assert not two.cudart.allocated


def test_what_the_first_device_holds_goes_when_the_second_fails(two):
    plan = two.directory / "engines/dit_uncond.plan"
    plan.write_bytes(b"x" * len(plan.read_bytes()))
    with pytest.raises(RuntimeError, match=r"failed loading dit_uncond from .*: the magic number does not match"):
        Pipeline.load(two.directory, devices=("cuda:1", "cuda:0"), verify="off")
    assert not two.cudart.allocated and two.cudart.count("malloc") > 0


def test_two_devices_by_the_command(two, tmp_path, capsys):
    arguments = ("--prompt", "x", "--steps", 1, "--devices", "0,1")
    assert run(*arguments, bundle=two, output=tmp_path / "a.png") == 0
    assert "on rtx (cuda:0,cuda:1): rtx engines for sm89 on Fake RTX 4090" in capsys.readouterr().err
    for gpus, capability, message in (
        (1, (8, 9), "cuda:1: this machine has 1 CUDA device, and there is no cuda:1"),
        (2, {0: (8, 9), 1: (7, 5)}, "cuda:1: the GPU Fake RTX 4090 is sm75, and the bundle's rtx engines are for sm89"),
    ):
        two.cudart.gpus, two.cudart.capability = gpus, capability
        loads = len(two.trt.loads)
        assert run(*arguments, "--backend", "rtx", bundle=two, output=tmp_path / "b.png") == 1
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error and len(two.trt.loads) == loads
    assert not two.cudart.allocated
    assert run("--prompt", "x", "--devices", "0,1", "--width", 768, bundle=two, output=tmp_path / "b.png") == 1
    assert not (tmp_path / "b.png").exists()
