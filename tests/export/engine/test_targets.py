"""Options of the build command for engines that cannot be."""

import sys

import pytest
import tensorrt_rtx

from export.build.command import main
from export.engine.targets import TARGETS


def test_tensorrt_needs_the_gpu(tmp_path, capsys):
    assert main(["--backend", "tensorrt", "--precision", "fp8", "--output", str(tmp_path / "bundle")]) == 1
    assert "--backend tensorrt builds for the GPU in the machine, and" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--precision", "fp8", "--target", "sm90"), "--target 'sm90' is not known, wanted some of sm75, sm80, sm86"),
        (("--precision", "fp8", "--target", "sm86"), r"sm86 (Ampere: RTX 30) cannot compute in float8"),
        (
            ("--precision", "fp8-weight-only", "--target", "sm80"),
            "Choose --precision int8, or --precision fp16 or bf16, for it",
        ),
        (("--precision", "int8", "--target", "sm75"), "Choose --precision int8 --base fp16 for it"),
        (("--precision", "bf16", "--target", "sm75"), "sm75 (Turing: RTX 20) cannot compute in bfloat16"),
        (
            (
                "--precision",
                "fp32",
            ),
            "--precision fp32 is for ort; the fused kernels of rtx want fp8, bf16 or fp16",
        ),
        (("--precision", "fp8", "--base", "fp32"), "--base fp32 is for ort"),
        (("--precision", "bf16", "--min-size", "100"), "--min-size is 100, wanted a multiple of 16 from 128 to 2048"),
        (("--precision", "bf16", "--min-size", "1024", "--max-size", "512"), "--min-size 1024 is above --max-size 512"),
        (("--precision", "bf16", "--max-batch", "0"), "--max-batch is 0, wanted 1 to 64"),
        (("--precision", "bf16", "--weights", "link"), "--weights link goes with --backend ort"),
    ],
)
def test_options_that_cannot_be(tmp_path, capsys, arguments, message):
    assert main(["--backend", "rtx", "--output", str(tmp_path / "bundle"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_package_that_is_not_installed(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert main(["--backend", "rtx", "--precision", "bf16", "--output", str(tmp_path / "bundle")]) == 1
    error = capsys.readouterr().err
    assert "TensorRT-RTX is not installed" in error and "install the extra 'rtx'" in error
    assert list(tmp_path.iterdir()) == []


def test_every_target_is_one_of_the_package():
    assert all(hasattr(tensorrt_rtx.ComputeCapability, name.upper()) for name in TARGETS)
