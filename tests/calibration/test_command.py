"""The command: what it writes, what it says, and how it continues after an interruption."""

import subprocess
import sys

import numpy as np
import pytest
from support.processes import ROOT

from calibration.command import main
from calibration.static import record
from calibration.static.ranges import check_ranges, read_ranges
from calibration.static.state import state_file


@pytest.fixture
def run(checkpoint, prompts, tmp_path):
    """run(*arguments) -> exit code of the command, writing ranges.json from three prompts and one step."""
    output = tmp_path / "ranges.json"

    def run(*arguments, output=output):
        fixed = ["--measure", "ranges", "--checkpoint", checkpoint.directory, "--prompts", prompts]
        fixed += ["--width", 256, "--height", 256]
        steps = [] if "--preset" in arguments else ["--steps", 1]
        return main([*map(str, [*fixed, *steps, "--output", output, *arguments])])

    run.output = output
    return run


@pytest.fixture
def stop(monkeypatch):
    """stop(n): Ctrl-C comes in the middle of the prompt n (from 1 on) of the next run; stop(None): never."""
    sample = record.record

    def stop(number):
        calls = []

        def interrupted(*arguments):
            calls.append(arguments)
            if len(calls) == number:
                raise KeyboardInterrupt
            return sample(*arguments)

        monkeypatch.setattr(record, "record", interrupted)
        return calls

    return stop


def refused(run, capsys, message, *arguments, **keywords):
    before = {file: file.read_bytes() for file in run.output.parent.rglob("*") if file.is_file()}
    assert run(*arguments, **keywords) == 1
    error = capsys.readouterr().err
    assert error.startswith("calibration: error: ") and message in error and "Traceback" not in error
    assert {file: file.read_bytes() for file in run.output.parent.rglob("*") if file.is_file()} == before


def test_ranges_are_written(run, checkpoint, capsys, tmp_path):
    assert run("--algorithm", "percentile", "--percentile", 99.5, "--seed", 3, "--limit", 2) == 0
    error = capsys.readouterr().err
    assert "calibrating               2 prompts in " in error and "\r" not in error
    assert "wrote" in error and "42 tensors, 2 prompts, 1 steps each" in error
    ranges = read_ranges(run.output)
    check_ranges(ranges, checkpoint)
    assert (ranges.algorithm, ranges.percentile, ranges.seed, ranges.prompts.count) == ("percentile", 99.5, 3, 2)
    assert (ranges.preset, ranges.steps, ranges.width, ranges.height) == (None, 1, 256, 256)
    assert {file.name for file in tmp_path.iterdir()} == {"prompts.txt", "ranges.json"}


def test_preset_and_silence(run, capsys):
    assert run("--preset", "V4_TURBO_12", "--limit", 1, "--quiet") == 0
    assert capsys.readouterr().err == ""
    ranges = read_ranges(run.output)
    assert (ranges.preset, ranges.steps, ranges.algorithm) == ("V4_TURBO_12", 12, "max")


def test_prompts_seed_and_size_matter_and_algorithm_does_not(run, tmp_path):
    def amax(name, *arguments):
        assert run("--quiet", "--limit", 1, *arguments, output=tmp_path / name) == 0
        return [tensor.amax for tensor in read_ranges(tmp_path / name).tensors.values()]

    first = amax("a.json")
    assert amax("b.json", "--algorithm", "mse") == first
    assert amax("c.json", "--seed", 1) != first
    assert amax("d.json", "--limit", 2) != first
    assert amax("e.json", "--width", 272) != first


def test_existing_output(run, capsys, monkeypatch):
    run.output.write_text("old")
    monkeypatch.setattr("calibration.command.open_checkpoint", lambda _: pytest.fail("the checkpoint was opened"))
    refused(run, capsys, "ranges.json exists; choose another --output or add --overwrite")
    refused(run, capsys, "is a directory, wanted a file name such as", output=run.output.parent)
    refused(run, capsys, "none does not exist", output=run.output.parent / "none" / "ranges.json")
    monkeypatch.undo()
    assert run("--overwrite", "--quiet", "--limit", 1) == 0
    assert read_ranges(run.output).prompts.count == 1


def test_wrong_inputs(run, capsys, tmp_path, monkeypatch, checkpoint):
    monkeypatch.setattr(type(checkpoint), "load", lambda *_: pytest.fail("weights were loaded"))
    refused(run, capsys, "--limit is 0, wanted at least 1", "--limit", 0)
    refused(run, capsys, "there is no checkpoint directory", "--checkpoint", tmp_path / "none")
    refused(run, capsys, "No such file or directory", "--prompts", tmp_path / "none.txt")
    refused(run, capsys, "width is 250", "--width", 250)
    refused(run, capsys, "percentile is 101.0", "--percentile", 101)
    (tmp_path / "long.txt").write_text("a cat\n\n" + "word " * 3000)
    # Also beyond the limit: a file that is wrong is wrong.
    refused(run, capsys, "long.txt, line 3: the prompt has", "--prompts", tmp_path / "long.txt", "--limit", 1)
    (tmp_path / "empty.txt").write_text("# nothing\n")
    refused(run, capsys, "empty.txt holds no prompt", "--prompts", tmp_path / "empty.txt")
    for wrong in (("--preset", "x", "--steps", "2"), ("--algorithm", "entropy"), ("--device", "tpu")):
        with pytest.raises(SystemExit, match="2"):
            run(*wrong)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_interrupted_run_continues(run, stop, capsys, tmp_path, number):
    """However far it came, the file is byte for byte that of a run without interruption."""
    whole = tmp_path / "whole.json"
    assert run("--quiet", output=whole) == 0
    stop(number)
    assert run() == 130
    error = capsys.readouterr().err
    state, kept = state_file(run.output), number - 1
    assert not run.output.exists() and state.exists() == (kept > 0)
    assert (f"{kept} of 3 prompts are kept in {state}; the same command continues" in error) == (kept > 0)
    calls = stop(None)
    assert run() == 0
    assert (f"continuing after {kept} of 3 prompts, kept in {state}" in capsys.readouterr().err) == (kept > 0)
    assert len(calls) == 3 - kept, "prompts were measured again"
    assert run.output.read_bytes() == whole.read_bytes()
    assert not state.exists() and not list(tmp_path.glob(".*"))


def test_interrupted_before_the_file_is_written(run, stop, tmp_path, monkeypatch):
    """All prompts are measured; nothing is sampled again, and another algorithm may be asked for."""
    monkeypatch.setattr("calibration.command.write_ranges", lambda *_: (_ for _ in ()).throw(OSError(28, "disk full")))
    assert run("--quiet") == 1
    monkeypatch.undo()
    monkeypatch.setattr("model.checkpoint.directory.Checkpoint.load", lambda *_: pytest.fail("weights were loaded"))
    assert run("--quiet", "--algorithm", "mse") == 0
    monkeypatch.undo()
    assert run("--quiet", "--algorithm", "mse", output=tmp_path / "whole.json") == 0
    assert run.output.read_bytes() == (tmp_path / "whole.json").read_bytes()


@pytest.mark.parametrize("change", [("--seed", 1), ("--steps", 2), ("--width", 272), ("--limit", 2)])
def test_state_of_another_run_is_ignored(run, stop, capsys, change):
    stop(2)
    assert run() == 130
    capsys.readouterr()
    calls = stop(None)
    # The last of two equal options counts.
    assert run(*change) == 0
    error = capsys.readouterr().err
    assert f"{state_file(run.output)} belongs to another calibration; starting anew" in error
    assert len(calls) == read_ranges(run.output).prompts.count
    assert not state_file(run.output).exists()


def flip(state):
    data = bytearray(state.read_bytes())
    data[2000] ^= 255
    state.write_bytes(data)


def spoil(name, change):
    def spoil(state):
        with np.load(state) as stored:
            arrays = dict(stored)
        arrays[name] = change(arrays[name])
        with state.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    return spoil


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.write_bytes(b""),
        lambda state: state.write_bytes(b"not a zip file"),
        lambda state: state.write_bytes(state.read_bytes()[:-100]),
        flip,
        lambda state: np.save(state.open("wb"), np.zeros(3)),
        spoil("done", lambda done: done + 3),
        spoil("counts", lambda counts: counts[:, 1:]),
        spoil("counts", lambda counts: counts.astype(float)),
        spoil("amax", lambda amax: amax[1:]),
        spoil("names", lambda names: names[::-1]),
    ],
)
def test_damaged_state_is_ignored(run, stop, capsys, damage, tmp_path):
    stop(2)
    assert run() == 130
    damage(state_file(run.output))
    calls = stop(None)
    capsys.readouterr()
    assert run() == 0
    assert f"{state_file(run.output)} is damaged (" in capsys.readouterr().err
    assert len(calls) == 3


def test_module_command(checkpoint, tmp_path):
    """``python -m calibration`` from a fresh process, with our own prompts."""
    output = tmp_path / "ranges.json"
    command = [
        sys.executable,
        "-m",
        "calibration",
        "--measure",
        "ranges",
        "--checkpoint",
        checkpoint.directory,
        "--limit",
        "1",
        "--steps",
        "1",
        "--width",
        "256",
        "--height",
        "256",
        "--quiet",
        "--output",
        output,
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert read_ranges(output).prompts.count == 1
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and "exists; choose another --output" in result.stderr
