"""The command for channel maxima."""

import pytest

from calibration.channels.file import check_channels, read_channels
from calibration.command import main


@pytest.fixture
def run(checkpoint, prompts, tmp_path):
    """run(*arguments) -> exit code of the command, writing c.safetensors from two prompts and one step."""

    def run(*arguments):
        fixed = ["--checkpoint", checkpoint.directory, "--prompts", prompts, "--steps", 1, "--width", 256, "--limit", 2]
        return main([*map(str, [*fixed, "--height", 256, "--output", tmp_path / "c.safetensors", *arguments])])

    return run


def test_channels_are_written(run, checkpoint, tmp_path, capsys):
    assert run("--seed", 3) == 0
    channels = read_channels(tmp_path / "c.safetensors")
    check_channels(channels, checkpoint)
    measured = channels.measured
    assert (measured.prompts.count, measured.steps, measured.width, measured.height, measured.seed) == (
        2,
        1,
        256,
        256,
        3,
    )
    assert "wrote" in (error := capsys.readouterr().err) and "channels of 168 tensors, 2 prompts, 1 steps each" in error
    assert {file.name for file in tmp_path.iterdir()} == {"prompts.txt", "c.safetensors"}, "no state is left"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", 0), "the number of steps is 0, wanted 1 to 1000"),
        (("--limit", 0), "--limit is 0, wanted at least 1"),
        (("--width", 100), "width is 100"),
        (("--checkpoint", "none"), "there is no checkpoint directory none"),
    ],
)
def test_refusals(run, tmp_path, capsys, arguments, message):
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("calibration: error: ")
    assert {file.name for file in tmp_path.iterdir()} == {"prompts.txt"}


def test_presets_are_for_ranges(checkpoint, tmp_path, capsys):
    arguments = ["--checkpoint", checkpoint.directory, "--preset", "V4_TURBO_12", "--output", tmp_path / "c"]
    assert main([*map(str, arguments)]) == 1
    assert "--preset goes with --measure ranges; channels take --steps" in capsys.readouterr().err
