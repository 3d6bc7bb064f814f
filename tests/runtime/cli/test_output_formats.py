"""What ``trt-generate`` writes where: formats by suffix, and files that others write at the same time."""

import os
import signal
import subprocess
import sys

import pytest
from PIL import Image
from support.caption_examples import POSTER_LINE
from support.command_line import FAST, names, write
from support.processes import ROOT

from runtime.image import output_files
from runtime.image.output_files import read_settings


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.WebP", "WEBP")])
def test_output_layout_and_preview_are_what_their_suffixes_say(run, folder, name, kind):
    options = ("--output", name, "--layout", f"layout-{name}", "--preview", f"preview-{name}")
    assert run("--prompt", POSTER_LINE, "--seed", 1, *options, *FAST) == 0
    assert names(folder) == sorted((name, f"layout-{name}", f"preview-{name}"))
    for file in folder.iterdir():
        with Image.open(file) as image:
            assert image.format == kind, file
    settings = read_settings(folder / name)
    assert (settings["prompt"], settings["seed"], settings["index"]) == (POSTER_LINE, 1, 0)


@pytest.mark.parametrize("option", ["--output", "--layout", "--preview"])
@pytest.mark.parametrize("name", ["a", "a.gif", "a.pngg"])
def test_suffixes_that_say_nothing_are_refused(run, folder, capsys, option, name):
    assert run("--prompt", POSTER_LINE, option, name) == 1
    assert f"the output {name} has no suffix that says what to write" in capsys.readouterr().err
    assert names(folder) == []


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_a_second_run_knows_its_files(run, folder, loads, suffix):
    write("p.jsonl", {"prompt": "x"}, {"prompt": "y", "output": f"own{suffix}"})
    options = ("--prompt-file", "p.jsonl", "--output", f"a{suffix}", "--num-images", 2, "--seed", 1, *FAST)
    assert run(*options) == 0 and run(*options) == 0 and len(loads) == 1
    (folder / f"own-1{suffix}").unlink()
    assert run(*options) == 0 and len(loads) == 2
    assert names(folder) == sorted([*(f"{name}-{i}{suffix}" for name in ("a-0001", "own") for i in (0, 1)), "p.jsonl"])


def test_settings_that_jpeg_cannot_hold_are_refused_before_any_work(run, folder, capsys, monkeypatch, loads):
    monkeypatch.setattr(output_files, "MAX_EXIF", 400)  # the longest prompt and schedule stay far below the real limit
    given = ("--prompt", "x" * 100, *FAST)
    assert run(*given, "--output", "a.jpg") == 1
    assert "bytes, and a JPEG file holds 400: choose .png or .webp" in capsys.readouterr().err
    assert names(folder) == [] and not loads
    assert run(*given, "--output", "a.webp") == 0


def test_two_processes_that_write_one_file(demo_bundle, folder):
    """Both found the name free; one gets it, the other says so and keeps its picture under another."""
    command = [sys.executable, "-m", "runtime", "--bundle", demo_bundle, "--output", folder / "a.png", "--steps", "40"]
    started = [
        subprocess.Popen(
            [*map(str, command), "--prompt", prompt], cwd=ROOT, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        for prompt in ("x", "y")
    ]
    # Neither may end before the other has begun: the first to begin waits.
    for process in started:
        _until(process, "fp32 on ort")
        process.send_signal(signal.SIGSTOP)
    for process in started:
        process.send_signal(signal.SIGCONT)
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert sorted(process.returncode for process in started) == [0, 1]
    assert sum("another program has made" in error for error in errors) == 1
    files = [file for file in folder.iterdir() if not file.name.startswith(".")]
    assert len(files) == 2 and {read_settings(file)["prompt"] for file in files} == {"x", "y"}
    assert folder / "a.png" in files and len(names(folder)) == 2


def _until(process, text):
    """Read what a process says until `text`."""
    for line in iter(process.stderr.readline, ""):
        if text in line:
            return
    raise AssertionError(f"the process ended with {process.wait()}")


def test_nohup_is_respected(demo_bundle, folder):
    """A signal that was ignored when the command began does not end it."""
    command = [sys.executable, "-m", "runtime", "--bundle", str(demo_bundle), "--prompt", "x", "--output", "a.png"]
    process = subprocess.Popen(
        [*command, "--steps", "20"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    _until(process, "fp32 on ort")
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0 and names(folder) == ["a.png"]
