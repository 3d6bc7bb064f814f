"""The build command: what it writes, and that it writes all of it or nothing."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from support import peers
from support.processes import ROOT, shell_code, start

from calibration.ranges import read_ranges, write_ranges
from calibration.record import DEFAULT_ALGORITHM
from export.atomic_directory import check_output, rename, unfinished
from export.build.checksums import recorded
from export.build.command import build, main
from export.build.options import BuildOptions
from export.build.preflight import available_memory, check_needs, needs_of, weight_bytes
from export.demo_model import DEMO_CHECKPOINT, calibrate_demo
from export.graph.precision import precision_of
from export.graph.recipe import Recipe
from model.checkpoint.directory import STAGES, open_checkpoint
from runtime import Pipeline
from runtime.bundle.integrity import check_files, sha256
from runtime.bundle.manifest import QuantizationSpec, read_manifest
from runtime.constants import TILE_GRAPHS


@pytest.fixture
def demo(tmp_path):
    """A copy of the demo checkpoint to spoil."""
    return peers.copy(DEMO_CHECKPOINT, tmp_path / "demo")


def refused(capsys, tmp_path, message, *arguments):
    """The command fails with `message` and leaves `tmp_path` as it was."""
    before = sorted(tmp_path.rglob("*"))
    assert main(["--output", str(tmp_path / "bundle"), "--quiet", *map(str, arguments)]) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("export.build: error: ") and "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before


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


def test_overwrite_takes_bundles_and_empty_directories(tmp_path):
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty", overwrite=True)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "manifest.json").write_text("{}")
    check_output(tmp_path / "old", overwrite=True)


def test_output_directory_that_does_not_exist(tmp_path, capsys):
    assert main(["--output", str(tmp_path / "no" / "bundle"), "--quiet"]) == 1
    assert f"the directory {tmp_path / 'no'} for the bundle does not exist" in capsys.readouterr().err


def test_no_checkpoint(tmp_path, capsys):
    refused(capsys, tmp_path, "there is no checkpoint directory", "--checkpoint", tmp_path / "none")


def test_flipped_bit_in_the_weights(demo, tmp_path, capsys):
    """In the data, not in the header: only the recorded checksum can tell."""
    file = demo / "transformer/diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)
    refused(capsys, tmp_path, f"{file} is damaged: SHA-256", "--checkpoint", demo)


def test_checksums_of_a_hub_download(demo):
    """The records that ``hf download --local-dir`` keeps: a commit, the SHA-256 of a large file, a time."""
    (demo / "SHA256SUMS").unlink()
    records = demo / ".cache/huggingface/download/vae"
    records.mkdir(parents=True)
    (records / "diffusion_pytorch_model.safetensors.metadata").write_text(f"{'a' * 40}\n{'b' * 64}\n1.5\n")
    (records / "config.json.metadata").write_text(f"{'a' * 40}\n{'c' * 40}\n1.5\n")
    assert recorded(demo) == {demo / "vae/diffusion_pytorch_model.safetensors": "b" * 64}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "tokenizer/tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda d: (d / "SHA256SUMS").write_text("nonsense\n"), "has the line 'nonsense'"),
        (lambda d: (d / "SHA256SUMS").write_text(f"{'0' * 64}  vae/gone\n"), "vae/gone is missing"),
        (lambda d: (d / "model_index.json").write_text('{"sizes": {"default": 2.5}}'), "sizes is {'default': 2.5}"),
        (lambda d: (d / "model_index.json").write_text('{"sizes": {"minimum": 20}}'), "minimum is 20"),
        (lambda d: (d / "model_index.json").write_text('{"_class_name": "FluxPipeline"}'), "is a FluxPipeline"),
        (lambda d: (d / "text_encoder/config.json").write_text("[]"), "holds a list, wanted an object"),
    ],
)
def test_spoiled_checkpoint(demo, tmp_path, capsys, spoil, message):
    spoil(demo)
    refused(capsys, tmp_path, message, "--checkpoint", demo)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--precision", "fp16", "--base", "fp32"), "--base fp32 goes with the fp8 precisions only"),
        (("--precision", "fp8-weight-only", "--attention", "fp8"), "--attention fp8 goes with --precision fp8, and"),
        (("--precision", "fp32", "--keep-base", "x"), "--keep-base goes with --precision fp8, and --precision is fp32"),
        (("--precision", "bf16", "--calibration", "r.json"), "--calibration goes with --precision fp8"),
        (("--precision", "fp8", "--keep-base", "layers.0.*"), "--keep-base 'layers.0.*' matches no activation"),
        (("--precision", "fp8", "--calibration", "missing.json"), "missing.json"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, capsys, arguments, message):
    refused(capsys, tmp_path, message, *arguments)


def test_float8_of_another_checkpoint_needs_calibration(peer, tmp_path, capsys):
    """Both ways out are named."""
    directory = peer("head64", "original-fp8")[1]
    refused(
        capsys,
        tmp_path,
        f"python -m calibration --checkpoint {directory} --output ranges.json",
        "--checkpoint",
        directory,
        "--precision",
        "fp8",
    )
    refused(
        capsys,
        tmp_path,
        "or build with --precision fp8-weight-only, which needs none",
        "--checkpoint",
        directory,
        "--precision",
        "fp8",
    )


def test_ranges_of_another_model(peer, tmp_path, capsys):
    ranges = calibrate_demo(open_checkpoint(DEMO_CHECKPOINT), quiet=True)
    write_ranges(ranges, tmp_path / "ranges.json")
    directory = peer("head64", "original-fp8")[1]
    refused(
        capsys,
        tmp_path,
        "fingerprint",
        "--checkpoint",
        directory,
        "--precision",
        "fp8",
        "--calibration",
        tmp_path / "ranges.json",
    )


@pytest.fixture(scope="module")
def fp8_bundle(tmp_path_factory):
    """The demo's float8 bundle, as ``python -m export.build --precision fp8`` makes it."""
    directory = tmp_path_factory.mktemp("fp8") / "bundle"
    build(BuildOptions(output=directory, precision="fp8", attention="fp8", quiet=True))
    return directory


def test_float8_build_of_the_demo_calibrates_itself(fp8_bundle, demo_bundle):
    manifest = read_manifest(fp8_bundle)
    assert manifest.quantization == QuantizationSpec(DEFAULT_ALGORITHM, "fp8", ())
    assert manifest.timestep_dtype == "bfloat16"
    assert {graph.compute for graph in manifest.graphs.values()} == {"float32"}
    ranges = read_ranges(fp8_bundle / "ranges.json")
    assert ranges.prompts.count == 8 and ranges.preset == "V4_TURBO_12"
    check_files(fp8_bundle, manifest.files)
    report = json.loads((fp8_bundle / "report.json").read_text())
    assert report["dit_cond"]["bytes_share"] > 0.96 and report["dit_cond"]["operations_share"] > 0.99
    weights = {name: spec.size for name, spec in manifest.files.items() if "dit" in name and name.endswith(".data")}
    plain = read_manifest(demo_bundle).files
    assert all(size < 0.27 * plain[name].size for name, size in weights.items()), "a quarter of float32, and scales"


def test_float8_bundle_makes_the_picture(fp8_bundle, demo_bundle):
    """Not the same one, but far closer to it than another seed's: measured, an eighth of the difference."""
    fp8, fp32 = Pipeline.load(fp8_bundle), Pipeline.load(demo_bundle)
    settings = {"preset": "V4_INSTANT_8", "width": 256, "height": 256}
    got = fp8.generate("a red circle", seed=4, **settings).images.astype(int)
    wanted = fp32.generate("a red circle", seed=4, **settings).images
    other = fp32.generate("a red circle", seed=5, **settings).images
    assert np.abs(got - wanted).mean() < 0.25 * np.abs(got - other).mean()


def test_disk_too_small(tmp_path, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**7, 10**7))
    refused(capsys, tmp_path, "GB, but ")


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


def test_failing_rename_brings_the_old_bundle_back(tmp_path, monkeypatch):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("old")
    real = os.rename

    def interrupted(source, target):
        if Path(source).name == ".bundle.partial":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), unfinished(tmp_path / "bundle") as partial:
        rename(partial, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "manifest.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_directory_that_cannot_be_written_is_found_first(capsys, monkeypatch):
    """Before the checksums and the calibration: not even root creates files in /proc, which also has no space."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 10**12))
    assert main(["--output", "/proc/self/bundle", "--precision", "fp8", "--quiet"]) == 1
    assert "cannot write to /proc/self" in capsys.readouterr().err


@pytest.mark.parametrize(("precision", "fits"), [("fp32", False), ("fp8", True), ("fp8-weight-only", True)])
def test_space_is_counted_by_precision(tmp_path, monkeypatch, precision, fits):
    """24 MB of float32 weights, 9 MB of float8 ones, and 64 MiB for everything else."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, (64 << 20) + 14_000_000))
    types = precision_of(precision, None, "ort")
    checkpoint, recipe = open_checkpoint(DEMO_CHECKPOINT), Recipe(types.activations_fp8, False)
    weights = {stage: weight_bytes(checkpoint, stage, types, recipe) for stage in checkpoint.sources}
    needs = needs_of("ort", weights, linked=False)
    if fits:
        check_needs(needs, tmp_path / "bundle")
    else:
        with pytest.raises(OSError, match=r"the bundle needs 0.09 GB, but .* has only 0.08 GB left"):
            check_needs(needs, tmp_path / "bundle")


def test_memory_too_small(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("export.build.preflight.available_memory", lambda: 500_000_000)
    refused(capsys, tmp_path, "the build needs 1.1 GB, but only 0.5 GB are available; close other programs or add swap")


def test_memory_that_is_available():
    assert 1 << 28 < available_memory() < 1 << 50


def test_what_a_killed_build_left_is_removed(tmp_path):
    (tmp_path / ".bundle.partial" / "onnx").mkdir(parents=True)
    with unfinished(tmp_path / "bundle") as partial:
        assert list(partial.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_two_builds_of_one_bundle(tmp_path, capsys):
    with (tmp_path / ".bundle.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(capsys, tmp_path, f"another build is writing {tmp_path / 'bundle'}")


def test_overwriting_replaces_the_bundle(peer, peer_bundle, tmp_path, capsys):
    """The smallest checkpoint, over a copy of another bundle. A log gets one line for each stage."""
    bundle = Path(shutil.copytree(peer_bundle("head32", "fp16"), tmp_path / "bundle"))
    (bundle / "onnx" / "stale.onnx").write_bytes(b"old")
    build(BuildOptions(checkpoint=peer("head64", "diffusers")[1], output=bundle, overwrite=True))
    manifest = read_manifest(bundle)
    shown = capsys.readouterr().err
    assert "\r" not in shown, "a bar"
    first, *stages, last = shown.splitlines()
    assert first.startswith("export.build: needs ") and last.startswith(f"wrote {bundle} (")
    assert sorted(line.split()[0] for line in stages) == sorted(manifest.graphs)
    assert manifest.precision == "fp32" and not (bundle / "onnx" / "stale.onnx").exists()
    check_files(bundle, manifest.files)
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_checksum_file_of_the_demo():
    for line in (DEMO_CHECKPOINT / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert sha256(DEMO_CHECKPOINT / name) == digest
    assert json.loads((DEMO_CHECKPOINT / "model_index.json").read_text())["_class_name"] == "Ideogram4Pipeline"
