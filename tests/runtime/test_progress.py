"""Progress on standard error: a bar on a terminal, one line a stage elsewhere."""

import io
import re
import subprocess
import sys

import pytest
from support.processes import ROOT
from support.terminal import Terminal

from runtime import progress
from runtime.progress import Progress, duration, track

DEMO = """
from runtime.progress import Progress, track
with Progress("weights", 2000, "B") as bar:
    for _ in range(2000):
        bar.update()
for _ in track(range(1000), "sampling", "step"):
    pass
with Progress("tracing") as bar:
    for phase in range(500):
        bar.set_description(f"phase {phase}")
    bar.set_description("engine")
"""


def test_a_pipe_gets_one_line_a_stage():
    """Of three stages with 3500 steps; a carriage return would join lines of a log."""
    done = subprocess.run([sys.executable, "-c", DEMO], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout == b"" and b"\r" not in done.stderr and b"\x1b" not in done.stderr
    lines = done.stderr.decode().splitlines()
    wanted = (r"weights {17}  0\.0 MB in", r"sampling {16}  1000 steps in", r"engine {18} ")
    for line, form in zip(lines, wanted, strict=True):
        assert re.fullmatch(rf"{form} \d+\.\d s", line)


def test_a_terminal_gets_bars():
    terminal = Terminal()
    process = subprocess.Popen([sys.executable, "-c", DEMO], cwd=ROOT, stderr=terminal.side)
    shown = terminal.rest()
    assert process.wait() == 0
    assert "\rsampling                : 100%" in shown and "1000/1000" in shown and "\rengine " in shown
    assert " in 0." not in shown, "the line is for logs"


def test_quiet_says_nothing(capsys):
    with Progress("weights", 10, "B", quiet=True) as bar:
        bar.update(10)
    assert list(track([1, 2], "sampling", "step", quiet=True)) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_stage_whose_result_is_told_leaves_no_line(capsys):
    with Progress("denoising", 2, "step", leave=False) as bar:
        bar.update(2)
    assert capsys.readouterr() == ("", "")


def test_a_stage_that_fails_says_how_far_it_came(capsys):
    with pytest.raises(ValueError), Progress("sampling", 5, "step", done=1) as bar:
        bar.update()
        raise ValueError
    assert re.fullmatch(r"sampling {16}  stopped after 2 of 5 steps in 0\.0 s\n", capsys.readouterr().err)


def test_a_total_that_is_known_later(capsys):
    with Progress("tracing", unit="B") as bar:
        bar.reset(total=3_000_000)
        bar.update(1_000_000)
        bar.set_description("text_encoder")
        bar.update(bar.total - bar.n)
    assert capsys.readouterr().err.startswith("text_encoder              3.0 MB in ")


def test_a_long_stage_says_where_it_is(monkeypatch):
    """Every five minutes, not at every step."""
    stream, now = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("calibrating", 60, "prompt") as bar:
        for _ in range(60):
            now[0] += 20
            bar.update()
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[-1].strip() for line in lines] == [
        "so far 15 of 60 prompts in 5:00",
        "so far 30 of 60 prompts in 10:00",
        "so far 45 of 60 prompts in 15:00",
        "so far 60 prompts in 20:00",
        "60 prompts in 20:00",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (65, "1:05"), (3905, "1:05:05")])
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 pictures"), (1, "1 picture"), (2, "2 pictures")])
def test_units_are_counted_in_english(capsys, count, text):
    list(track(range(count), "gallery", "picture"))
    assert f"  {text} in " in capsys.readouterr().err
