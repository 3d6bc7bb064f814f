"""Options of the build command that do not go together, or not with the checkpoint."""

import pytest
from support.build_command import refused


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


def test_ranges_of_another_model(peer, demo_fp8_bundle, tmp_path, capsys):
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
        demo_fp8_bundle / "ranges.json",
    )
