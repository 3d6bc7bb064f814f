"""The GPU benchmark, as far as a machine without a GPU goes: its errors, and both sides' measuring on the CPU."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
from cuda.bindings import runtime as cudart
from PIL import Image
from support.bundles import build_bundle
from support.processes import ROOT, make_checkpoint

from export.memory import Peak
from export.verify.quality import psnr
from runtime.backend.machine import Machine
from runtime.tensorrt.cuda import Gpu
from scripts.bench.gpu import build_options, choose_runs, main
from scripts.bench.gpu_results import Measured, Run, table
from scripts.bench.gpu_sides import Task, check_diffusers, load_diffusers, measure_diffusers, measure_ours

no_gpu = pytest.mark.skipif(
    cudart.cudaGetDeviceCount()[0] == cudart.cudaError_t.cudaSuccess, reason="this machine has a GPU"
)
RUNS = (Run("two", (3.0, 3.0), 0.0, 1.5), Run("three, last unguided", (3.0, 3.0, 1.0), 0.0, 1.75))


def used_that_counts(step):
    """Device memory that grows by `step` bytes with every look."""
    looks = iter(range(0, 10**9, step))
    return lambda: next(looks)


@no_gpu
def test_without_a_card_it_is_one_line_and_a_code(tmp_path):
    command = [sys.executable, "-m", "scripts.bench.gpu", "--workdir", tmp_path / "w", "--json", tmp_path / "r.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("scripts.bench.gpu: error: this machine has no NVIDIA GPU that CUDA can use (")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing is made for a card that is not there"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "cpu"), "device is 'cpu', and this measures GPUs"),
        (("--repeats", "0"), "--repeats is 0, wanted 1 or more"),
        (("--warmups", "-1"), "--warmups is -1, wanted 0 or more"),
        (("--threads", "2"), "--threads is for graphs on a CPU"),
        (("--steps", "0"), "the number of steps is 0, wanted 1 to"),
        (("--json", "/no/such/dir/x.json"), "the output directory /no/such/dir does not exist"),
    ],
)
def test_wrong_options(tmp_path, capsys, options, message):
    assert main(["--bundle", str(tmp_path), *options]) == 1
    assert f"scripts.bench.gpu: error: {message}" in capsys.readouterr().err


@no_gpu
def test_what_the_peer_needs_is_looked_at_before_anything_is_measured():
    with pytest.raises(RuntimeError, match=r"PyTorch .* sees no CUDA; install a build of it for CUDA"):
        check_diffusers(None)


def test_a_directory_that_is_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(FileNotFoundError, match="is not a checkpoint in diffusers' layout: it has no text_encoder"):
        check_diffusers(tmp_path)


def test_runs():
    assert [run.name for run in choose_runs(["V4_TURBO_12", "V4_INSTANT_8"], None)] == ["V4_TURBO_12", "V4_INSTANT_8"]
    (run,) = choose_runs([], 4)
    assert run == Run("4 steps", (7.0,) * 4, 0.0, 1.5)


@pytest.mark.parametrize(
    ("capability", "installed", "wanted"),
    [
        ("sm89", ("rtx", "tensorrt"), ["--precision", "bf16", "--backend", "rtx", "--target", "sm89"]),
        ("sm75", ("rtx",), ["--precision", "fp16", "--backend", "rtx", "--target", "sm75"]),
        ("sm90", ("rtx", "tensorrt"), ["--precision", "bf16", "--backend", "tensorrt"]),
        ("sm90", ("rtx",), ["--precision", "fp16", "--backend", "ort"]),
        ("sm89", (), ["--precision", "fp16", "--backend", "ort"]),
    ],
)
def test_what_is_built_for_a_card(capability, installed, wanted):
    gpu = Gpu(0, "card", capability, 13000, 10**9, 10**9)
    assert build_options(Machine(gpu, "", tuple((name, "1") for name in installed))) == wanted


def test_both_sides_measure_the_same_pictures(demo_checkpoint_pair, tmp_path):
    """On the CPU in float32, where the runtime and diffusers agree to one step of 255."""
    bundle, checkpoint = demo_checkpoint_pair
    task = Task(str(bundle), "a red circle", 256, RUNS, 1, 2, 5, "cpu", str(tmp_path / "a.png"))
    task = Task.from_json(json.dumps(asdict(task)))
    ours = measure_ours(task, used_that_counts(100))
    assert ours.where == "ort (cpu): the bundle holds no engines"
    theirs = replace(task, source=str(checkpoint), output=str(tmp_path / "b.png"), tokens=ours.tokens)
    peer = measure_diffusers(theirs, used_that_counts(100), dtype="float32")
    for side in (ours, peer):
        # Two pictures of two guided steps, two of three steps of which one is unguided; the warm-up is not counted.
        assert {name: len(seconds) for name, seconds in side.pictures.items()} == {run.name: 2 for run in RUNS}
        assert {stage: len(calls) for stage, calls in side.stages.items() if stage != "dit_uncond"} == {
            "text_encoder": 4,
            "dit_cond": 10,
            "vae_decoder": 4,
        }
        total = sum(sum(calls) for calls in side.stages.values()) / 1000
        assert 0 < total <= sum(sum(seconds) for seconds in side.pictures.values())
        assert side.peak_bytes >= 100 and side.load_seconds > 0
    # diffusers runs the unconditional transformer in unguided steps too.
    assert (len(ours.stages["dit_uncond"]), len(peer.stages["dit_uncond"])) == (8, 10)
    pictures = [np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "b.png")]
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 1
    assert psnr(*pictures) > 48  # one step of 255 everywhere is 48.1 dB


@pytest.fixture(scope="module")
def demo_checkpoint_pair(tmp_path_factory):
    """A small checkpoint as scripts/make_checkpoint.py writes it for diffusers, and its bundle."""
    folder = tmp_path_factory.mktemp("bench")
    checkpoint, bundle = folder / "checkpoint", folder / "bundle"
    make_checkpoint(checkpoint, "--size", "demo", "--layout", "diffusers", "--dtype", "bf16")
    return build_bundle(checkpoint, bundle, "fp32"), checkpoint


def test_diffusers_gets_no_large_vision_tower(demo_checkpoint_pair):
    """The checkpoint has none; transformers' default one would count half a billion parameters against the peer."""
    pipeline = load_diffusers(demo_checkpoint_pair[1], "float32")
    assert sum(p.numel() for p in pipeline.text_encoder.visual.parameters()) < 100_000


def test_the_peak_is_over_what_was_there_before():
    values = iter([50, 70, 90, *[60] * 1000])
    with Peak(lambda: next(values)) as peak:
        while peak.highest < 90:
            pass
    assert peak.grown == 40


def test_table():
    ours = Measured(
        "rtx (cuda:0)",
        20,
        {"text_encoder": [5], "dit_cond": [10, 30, 20], "dit_uncond": [], "vae_decoder": [8]},
        {"V4_TURBO_12": [0.5]},
        10 * 10**9,
        3,
    )
    peer = Measured(
        "bfloat16",
        20,
        {"text_encoder": [10], "dit_cond": [60], "dit_uncond": [50], "vae_decoder": [8]},
        {"V4_TURBO_12": [1.5]},
        40 * 10**9,
        30,
    )
    assert table(ours, peer, 40.0) == (
        "                              ours   diffusers  ratio\n"
        "text_encoder, ms a call       5.00   10.00      2.00\n"
        "dit_cond, ms a call           20.00  60.00      3.00\n"
        "dit_uncond, ms a call         -      50.00\n"
        "vae_decoder, ms a call        8.00   8.00       1.00\n"
        "V4_TURBO_12, s a picture      0.500  1.500      3.00\n"
        "peak device memory, GB        10.00  40.00      4.00\n"
        "loading, s                    3.0    30.0       10.00\n"
        "PSNR of the two pictures, dB  40.0\n\n"
        "ours: rtx (cuda:0)\ndiffusers: bfloat16"
    )
    assert "diffusers:" not in table(ours, None)
