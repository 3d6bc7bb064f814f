"""Options of the build command that do not go together, or not with the checkpoint."""

import pytest
from support.build_command import refused

from calibration.channels.file import write_channels
from calibration.channels.record import measure_channels
from calibration.static.ranges import write_ranges
from export.demo_model import DEMO_CAPTIONS, DEMO_CHECKPOINT, calibrate_demo
from model.checkpoint.directory import open_checkpoint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--precision", "fp16", "--base", "fp32"), "--base fp32 goes with the precisions fp8 and int8 only"),
        (("--precision", "fp8-weight-only", "--attention", "fp8"), "--attention fp8 goes with --precision fp8, and"),
        (
            ("--precision", "fp32", "--keep-base", "x"),
            "--keep-base goes with --precision fp8 or int8, and --precision is fp32",
        ),
        (("--precision", "bf16", "--calibration", "r.json"), "--calibration goes with --precision fp8 or int8"),
        (
            ("--precision", "fp8", "--calibration", "r.json"),
            "--calibration goes with --activations static or --precisio",
        ),
        (("--precision", "bf16", "--activations", "token"), "--activations token goes with --precision fp8, and"),
        (
            ("--precision", "int8", "--activations", "static"),
            "--activations static goes with --precision fp8; int8 has",
        ),
        (("--precision", "int8", "--attention", "fp8"), "--attention fp8 goes with --precision fp8, and"),
        (("--precision", "int8", "--calibration", "missing"), "missing"),
        (("--precision", "fp8", "--keep-base", "layers.0.*"), "--keep-base 'layers.0.*' matches no activation"),
        (("--precision", "fp8", "--activations", "static", "--calibration", "missing.json"), "missing.json"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, capsys, arguments, message):
    refused(capsys, tmp_path, message, *arguments)


def test_static_ranges_of_another_checkpoint_are_asked_for(peer, tmp_path, capsys):
    """Both ways out are named."""
    options = ("--checkpoint", peer("head64", "original-fp8")[1], "--precision", "fp8", "--activations", "static")
    command = f"python -m calibration --measure ranges --checkpoint {options[1]} --output ranges.json"
    refused(capsys, tmp_path, command, *options)
    refused(capsys, tmp_path, "or leave --activations out: a scale for each token needs no calibration", *options)


def test_measurements_of_another_model(peer, tmp_path, capsys):
    directory = peer("head64", "original-fp8")[1]
    demo = open_checkpoint(DEMO_CHECKPOINT)
    write_ranges(calibrate_demo(demo, quiet=True), tmp_path / "ranges.json")
    write_channels(measure_channels(demo, DEMO_CAPTIONS[:1], steps=1, quiet=True), tmp_path / "channels")
    options = ("--checkpoint", directory, "--calibration")
    static = ("--precision", "fp8", "--activations", "static")
    message = "the channel maxima were measured on demo (fingerprint "
    refused(capsys, tmp_path, message, *options, tmp_path / "channels", "--precision", "int8")
    refused(capsys, tmp_path, "the ranges were measured on demo", *options, tmp_path / "ranges.json", *static)
    message = "it looks like static ranges, and int8 needs channel maxima"
    refused(capsys, tmp_path, message, *options, tmp_path / "ranges.json", "--precision", "int8")
