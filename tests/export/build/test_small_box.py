"""Builds in bounded memory, and bundles that share the checkpoint's own files, at the real width with two blocks."""

import sys

import numpy as np
import pytest
from support import peers
from support.processes import ROOT

from export.build.checksums import SUMS
from export.build.command import main
from export.demo_model import DEMO_CHECKPOINT
from model.checkpoint.directory import open_checkpoint
from runtime import Pipeline
from runtime.backend import ort
from runtime.bundle.integrity import check_files
from runtime.bundle.manifest import read_manifest
from scripts.bench.peak_memory import run_measured


def test_engines_in_little_more_memory_than_the_weights(wide_checkpoint, tmp_path):
    """The bound of the full size, scaled: 1.3 times the weights of the largest stage, and 1.5 GB for the process."""
    command = [
        sys.executable,
        "-m",
        "export.build",
        "--checkpoint",
        wide_checkpoint,
        "--precision",
        "fp8",
        "--backend",
        "rtx",
        "--no-compare",
        "--output",
        tmp_path / "bundle",
        "--quiet",
    ]
    measured = run_measured(command, ROOT)
    assert measured.code == 0, measured.stderr
    manifest = read_manifest(tmp_path / "bundle")
    largest = max(spec.size for path, spec in manifest.files.items() if path.endswith(".plan"))
    assert largest > 500e6 and measured.peak_bytes <= 1.3 * largest + 1.5e9
    assert manifest.graphs == {} and not (tmp_path / "bundle" / "onnx").exists(), "engines only"
    check_files(tmp_path / "bundle", manifest.files)


@pytest.fixture(scope="module")
def linked(wide_checkpoint, tmp_path_factory):
    """A bundle for ONNX Runtime that shares the checkpoint's files, and the peak of its build's memory in bytes."""
    output = tmp_path_factory.mktemp("linked") / "bundle"
    command = [
        sys.executable,
        "-m",
        "export.build",
        "--checkpoint",
        wide_checkpoint,
        "--precision",
        "fp8-weight-only",
        "--weights",
        "link",
        "--output",
        output,
        "--quiet",
    ]
    measured = run_measured(command, ROOT)
    assert measured.code == 0, measured.stderr
    return output, measured.peak_bytes


def test_linked_weights_are_the_checkpoints_own_files(wide_checkpoint, linked):
    bundle, peak = linked
    shared = bundle / "onnx" / "weights" / "transformer-diffusion_pytorch_model.safetensors"
    assert shared.samefile(wide_checkpoint / "transformer" / "diffusion_pytorch_model.safetensors")
    assert peak < 1.5e9, "0.7 GB for PyTorch, none for the weights, whose two transformers alone have 1.2 GB"
    check_files(bundle, read_manifest(bundle).files)
    written = sum(f.stat().st_size for f in bundle.rglob("*") if f.is_file() and f.stat().st_nlink == 1)
    assert written < 12e6, "graphs, and what is not stored as the graph wants it"


def test_linked_bundle_makes_the_picture_of_a_copied_one(demo_weight_only_bundle, tmp_path):
    """Byte for byte, on the demo."""
    arguments = ["--precision", "fp8-weight-only", "--weights", "link", "--quiet"]
    assert main([*arguments, "--output", str(tmp_path / "link")]) == 0
    pictures = [
        Pipeline.load(bundle).generate("a circle", seed=1, preset="V4_INSTANT_8").images
        for bundle in (tmp_path / "link", demo_weight_only_bundle)
    ]
    assert np.array_equal(*pictures) and pictures[0].std() > 0


def test_nan_in_linked_weights_is_found(tmp_path, capsys):
    """They are not read to be written, so the scan beside the build must find it."""
    checkpoint = peers.copy(DEMO_CHECKPOINT, tmp_path / "checkpoint")
    (checkpoint / SUMS).unlink()
    tensor = open_checkpoint(checkpoint).sources["dit_cond"]["layers.1.attention.o.weight"].parts[0]
    with tensor.file.open("r+b") as stream:
        stream.seek(tensor.offset + 77)
        stream.write(b"\x7f")
    arguments = ["--checkpoint", str(checkpoint), "--precision", "fp8-weight-only", "--weights", "link", "--quiet"]
    assert main([*arguments, "--output", str(tmp_path / "bundle")]) == 1
    assert "layers.1.attention.o.weight holds NaN or infinity; the file is damaged" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_nan_that_was_found_is_found_again(tmp_path, capsys):
    """The engine that was made of it is not finished: a build that goes on must not take it."""
    checkpoint = peers.copy(DEMO_CHECKPOINT, tmp_path / "checkpoint")
    (checkpoint / SUMS).unlink()
    tensor = open_checkpoint(checkpoint).sources["dit_uncond"]["layers.1.attention.o.weight"].parts[0]
    with tensor.file.open("r+b") as stream:
        stream.seek(tensor.offset + 77)
        stream.write(b"\x7f")
    arguments = ["--checkpoint", str(checkpoint), "--precision", "fp8-weight-only", "--backend", "rtx", "--quiet"]
    for _ in range(2):
        assert main([*arguments, "--target", "sm89", "--output", str(tmp_path / "bundle")]) == 1
        assert "layers.1.attention.o.weight holds NaN or infinity; the file is damaged" in capsys.readouterr().err
        assert not (tmp_path / "bundle").exists()


def test_weights_that_do_not_fit_stay_in_their_file(demo_weight_only_bundle, monkeypatch):
    """The same picture with float8 weights multiplied out at each call, but for a last bit that rounds a byte."""
    graphs = read_manifest(demo_weight_only_bundle).graphs
    assert graphs["dit_cond"].expanded_bytes > 3 * 868352 and graphs["vae_decoder"].expanded_bytes == 0
    pictures = []
    for usable in (ort._USABLE, 0.0):
        monkeypatch.setattr(ort, "_USABLE", usable)
        pictures.append(
            Pipeline.load(demo_weight_only_bundle).generate("a circle", seed=1, preset="V4_INSTANT_8").images
        )
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 1


def test_no_more_than_one_weight_is_multiplied_out(linked):
    """Two blocks of the real width, whose weights have 2.3 GB in float32; the largest has 0.26 GB."""
    code = (
        "import sys; from scripts.bench import run_stage; from runtime.backend import ort; ort._USABLE = 0.0; "
        f"sys.exit(run_stage.main([{str(linked[0])!r}, 'dit_cond', '--size', '256']))"
    )
    measured = run_measured([sys.executable, "-c", code], ROOT)
    assert measured.code == 0 and "finite: True" in measured.stdout, measured.stderr
    # Measured: 1.45 GB, and 1.48 GB with 34 blocks. The largest weight, its transposition, what the product packs of
    # it, ONNX Runtime itself, and activations of 320 rows.
    assert measured.peak_bytes < 1.7e9
