"""The build command: what it writes, and that it writes all of it or nothing."""

import fcntl
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from support.build_command import refused
from support.bundles import build_bundle
from support.processes import ROOT, shell_code, start

from calibration.channels import record
from calibration.channels.file import check_channels, read_channels
from export.build.command import main
from export.demo_model import DEMO_CHECKPOINT
from export.graph.smoothing import ALPHA
from model.checkpoint.directory import STAGES, open_checkpoint
from runtime import Pipeline
from runtime.bundle.integrity import check_files
from runtime.bundle.manifest import QuantizationSpec, read_manifest
from runtime.constants import TILE_GRAPHS
from runtime.errors import NonFiniteError
from runtime.plan import make_plan


def test_demo_bundle(demo_bundle):
    manifest = read_manifest(demo_bundle)
    assert (manifest.name, manifest.precision, manifest.timestep_dtype) == ("demo", "fp32", "float32")
    assert list(manifest.graphs) == [*STAGES, *TILE_GRAPHS.values()]
    assert (manifest.sizes.multiple, manifest.sizes.default, manifest.sizes.maximum) == (16, 128, 2048)
    check_files(demo_bundle, manifest.files)
    on_disk = {file.relative_to(demo_bundle).as_posix() for file in demo_bundle.rglob("*") if file.is_file()}
    assert on_disk == {*manifest.files, "manifest.json"}
    assert not [p for p in demo_bundle.parent.iterdir() if p != demo_bundle], "something was left beside the bundle"


def test_fp16_keeps_the_autoencoder_in_float32(peer_bundle):
    graphs = read_manifest(peer_bundle("head32", "fp16")).graphs
    assert {name: graph.compute for name, graph in graphs.items()} == {
        "text_encoder": "float16",
        "dit_cond": "float16",
        "dit_uncond": "float16",
        "vae_decoder": "float32",
        "vae_encoder": "float32",
        "vae_decoder_tile": "float32",
        "vae_encoder_tile": "float32",
    }


def test_existing_output(tmp_path, capsys):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.txt").write_text("mine")
    refused(capsys, tmp_path, "exists; choose another --output or add --overwrite")
    refused(capsys, tmp_path, "exists and is not a bundle; it is not overwritten", "--overwrite")
    assert (tmp_path / "bundle" / "thesis.txt").read_text() == "mine"


def test_output_directory_that_does_not_exist(tmp_path, capsys):
    assert main(["--output", str(tmp_path / "no" / "bundle"), "--quiet"]) == 1
    assert f"the directory {tmp_path / 'no'} for the bundle does not exist" in capsys.readouterr().err


def test_float8_build_needs_no_calibration(demo_fp8_bundle, demo_bundle):
    manifest = read_manifest(demo_fp8_bundle)
    assert manifest.quantization == QuantizationSpec("token", "fp8", ())
    assert manifest.timestep_dtype == "bfloat16"
    assert {graph.compute for graph in manifest.graphs.values()} == {"float32"}
    assert not {"ranges.json", "channels.safetensors"} & manifest.files.keys()
    check_files(demo_fp8_bundle, manifest.files)
    report = json.loads((demo_fp8_bundle / "report.json").read_text())
    assert report["dit_cond"]["bytes_share"] > 0.96 and report["dit_cond"]["operations_share"] > 0.99
    weights = {name: spec.size for name, spec in manifest.files.items() if "dit" in name and name.endswith(".data")}
    plain = read_manifest(demo_bundle).files
    assert all(size < 0.27 * plain[name].size for name, size in weights.items()), "a quarter of float32, and scales"


@pytest.fixture(scope="module")
def int8_bundle(tmp_path_factory):
    """The demo in int8, built by the command, which calibrates by itself."""
    directory = tmp_path_factory.mktemp("int8") / "bundle"
    assert main(["--precision", "int8", "--output", str(directory), "--quiet"]) == 0
    return directory


def test_int8_build_calibrates_itself(int8_bundle):
    manifest = read_manifest(int8_bundle)
    assert manifest.quantization == QuantizationSpec("token", "base", (), ALPHA)
    codes = {name: graph.codes for name, graph in manifest.graphs.items()}
    assert {name for name, kind in codes.items() if kind == "int8"} == {"text_encoder", "dit_cond", "dit_uncond"}
    channels = read_channels(int8_bundle / "channels.safetensors")
    check_channels(channels, open_checkpoint(DEMO_CHECKPOINT))
    check_files(int8_bundle, manifest.files)
    stages = json.loads((int8_bundle / "report.json").read_text())["rounding"]["stages"]
    assert list(stages) == ["text_encoder", "dit_cond", "dit_uncond"]
    assert all(0 < stage["error"] < 0.1 for stage in stages.values())


def test_what_was_measured_and_compared_is_kept(int8_bundle, capsys):
    """Building again measures nothing; another --keep-base compares again."""
    arguments = ["--precision", "int8", "--output", str(int8_bundle), "--overwrite"]
    assert main(arguments) == 0
    error = capsys.readouterr().err
    assert "calibrating" not in error and "comparing" not in error and error.count("unchanged") == 7
    assert main([*arguments, "--keep-base", "dit_cond.layers.0.*"]) == 0
    error = capsys.readouterr().err
    assert "calibrating" not in error and "comparing" in error


def test_a_killed_measurement_continues(tmp_path, monkeypatch, capsys):
    save = record.Store.save

    def stop(self, state):
        save(self, state)
        raise KeyboardInterrupt

    arguments = ["--precision", "int8", "--output", str(tmp_path / "bundle"), "--no-compare"]
    monkeypatch.setattr(record.Store, "save", stop)
    assert main(arguments) == 130
    monkeypatch.undo()
    capsys.readouterr()
    assert main(arguments) == 0
    assert "continuing after 1 of 3 steps" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]
    assert not any("state" in file.name for file in (tmp_path / "bundle").iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_with_its_step(int8_bundle, value):
    """In int8, which has no code for it: text features with one such value."""
    with Pipeline.load(int8_bundle) as pipeline:
        plan = make_plan(pipeline.manifest, pipeline.prompt, "a red circle", preset="V4_TURBO_12")
        text = pipeline.text(plan).copy()
        text[0, 3, 5] = value
        with pytest.raises(NonFiniteError, match=r"conditional velocity has \d+ NaN .* at step 1 of 12"):
            list(pipeline.trajectory(plan, text=text))


def test_float8_bundle_makes_the_picture(demo_fp8_bundle, demo_bundle):
    """Not the same one, but far closer to it than another seed's: measured, an eighth of the difference."""
    fp8, fp32 = Pipeline.load(demo_fp8_bundle), Pipeline.load(demo_bundle)
    settings = {"preset": "V4_INSTANT_8", "width": 256, "height": 256}
    got = fp8.generate("a red circle", seed=4, **settings).images.astype(int)
    wanted = fp32.generate("a red circle", seed=4, **settings).images
    other = fp32.generate("a red circle", seed=5, **settings).images
    assert np.abs(got - wanted).mean() < 0.25 * np.abs(got - other).mean()


def test_disk_that_fills_up(tmp_path):
    """A limit on the size of files stands in for a full disk: writing the weights fails half-way."""
    limit = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)); "
        "from export.build.command import main"
    )
    arguments = ["--output", str(tmp_path / "bundle"), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", f"{limit}; sys.exit(main({arguments!r}))"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("export.build: error: cannot write the weights of text_encoder: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_leaves_nothing(tmp_path, sent, code):
    process = start([sys.executable, "-m", "export.build", "--output", tmp_path / "bundle", "--quiet"])
    deadline = time.monotonic() + 60
    while not (tmp_path / ".bundle.partial").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(sent)
    _, error = process.communicate(timeout=60)
    assert shell_code(process) == code and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_directory_that_cannot_be_written_is_found_first(capsys, monkeypatch):
    """Before the checksums and the calibration: not even root creates files in /proc, which also has no space."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 10**12))
    assert main(["--output", "/proc/self/bundle", "--precision", "fp8", "--quiet"]) == 1
    assert "cannot write to /proc/self" in capsys.readouterr().err


def test_two_builds_of_one_bundle(tmp_path, capsys):
    with (tmp_path / ".bundle.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(capsys, tmp_path, f"another build is writing {tmp_path / 'bundle'}")


def test_overwriting_replaces_the_bundle(peer, peer_bundle, tmp_path, capsys):
    """The smallest checkpoint, over a copy of another bundle. A log gets one line for each stage."""
    bundle = Path(shutil.copytree(peer_bundle("head32", "fp16"), tmp_path / "bundle"))
    (bundle / "onnx" / "stale.onnx").write_bytes(b"old")
    listed = json.loads((bundle / "manifest.json").read_text())
    listed["files"]["onnx/stale.onnx"] = {"size": 3, "sha256": "0" * 64}
    (bundle / "manifest.json").write_text(json.dumps(listed))
    build_bundle(peer("head64", "diffusers")[1], bundle, "fp32", overwrite=True, quiet=False)
    manifest = read_manifest(bundle)
    shown = capsys.readouterr().err
    assert "\r" not in shown, "a bar"
    first, *stages, last = shown.splitlines()
    assert first.startswith("export.build: needs ") and last.startswith(f"wrote {bundle} (")
    assert sorted(line.split()[0] for line in stages) == sorted([*manifest.graphs, "self-test"])
    assert manifest.precision == "fp32" and not (bundle / "onnx" / "stale.onnx").exists()
    check_files(bundle, manifest.files)
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
