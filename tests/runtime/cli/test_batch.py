"""``trt-generate`` with many prompts, on the demo bundle."""

import json
import signal
import sys

import numpy as np
import pytest
from PIL import Image
from support.caption_examples import POSTER, POSTER_LINE
from support.command_line import FAST, names, prompts_of, write
from support.processes import shell_code, start

from runtime import Pipeline
from runtime.image.output_files import read_settings
from runtime.layout import fonts


def test_a_prompt_a_line(run, folder, loads):
    write("p.txt", "a red circle", "", POSTER_LINE)
    assert run("--prompt-file", "p.txt", "--seed", 4, *FAST) == 0
    assert prompts_of(folder) == {"ideogram4-0001.png": "a red circle", "ideogram4-0003.png": POSTER_LINE}
    assert names(folder)[-1] == "p.txt" and len(loads) == 1


def test_output_directory(run, folder):
    (folder / "pictures").mkdir()
    assert run("--prompt-file", write("p.txt", "x"), "--output", "pictures", *FAST) == 0
    assert names(folder / "pictures") == ["ideogram4-0001.png"]


def test_pictures_are_those_of_single_runs(run, folder, demo_bundle):
    lines = [
        {"prompt": "a red circle", "seed": 1, "steps": 2, "output": "a.png"},
        {"prompt": "a red circle", "seed": 2, "width": 320, "guidance": "3,1", "steps": 2, "output": "b.png"},
        {"caption": json.loads(POSTER_LINE), "seed": 1, "preset": "V4_INSTANT_8", "num_images": 2, "output": "c.png"},
    ]
    assert run("--prompt-file", write("p.jsonl", *lines), "--quiet") == 0
    pipeline = Pipeline.load(demo_bundle)
    wanted = [
        pipeline.generate("a red circle", seed=1, steps=2).images[0],
        pipeline.generate("a red circle", seed=2, width=320, guidance=(3.0, 1.0), steps=2).images[0],
        *pipeline.generate(POSTER, seed=1, preset="V4_INSTANT_8", num_images=2).images,
    ]
    for name, image in zip(("a.png", "b.png", "c-0.png", "c-1.png"), wanted, strict=True):
        assert np.array_equal(np.asarray(Image.open(folder / name)), image), name


def test_json_is_a_line_for_each(run, capsys):
    write("p.txt", "x", "y")
    assert run("--prompt-file", "p.txt", "--seed", 1, "--steps", 1, "--json", "--quiet") == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["line"], one["prompt"], one["files"]) for one in told] == [
        ("p.txt:1", "x", ["ideogram4-0001.png"]),
        ("p.txt:2", "y", ["ideogram4-0002.png"]),
    ]


def test_layouts_of_lines(run, folder):
    write("p.jsonl", {"caption": json.loads(POSTER_LINE)}, {"prompt": POSTER_LINE, "layout": "own.png", "width": 320})
    assert run("--prompt-file", "p.jsonl", "--layout", "plan.png", "--dry-run", "--quiet") == 0
    assert names(folder) == ["own.png", "p.jsonl", "plan-0001.png"]
    assert Image.open(folder / "own.png").size == (320, 128)


def test_bad_lines_are_told_and_the_others_made(run, folder, capsys):
    (folder / "mine.png").write_bytes(b"mine")
    write(
        "p.jsonl",
        {"prompt": "x", "output": "a.png"},
        "not JSON",
        {"prompt": ""},
        {"prompt": "x", "width": 100},
        {"prompt": "x", "output": "a.png"},
        {"prompt": "x", "output": "no/b.png"},
        {"prompt": "x", "output": "mine.png"},
        {"prompt": "x", "layout": "plan.png"},
        {"prompt": "y"},
    )
    assert run("--prompt-file", "p.jsonl", *FAST) == 1
    error = capsys.readouterr().err
    for line in (
        "p.jsonl:2: the line is not in order: it is not JSON: Expecting value",
        "p.jsonl:3: the prompt is empty",
        "p.jsonl:4: width is 100, wanted 128 to 2048",
        "p.jsonl:5: the output a.png is already that of p.jsonl:1",
        "p.jsonl:6: the output directory no does not exist",
        "p.jsonl:7: the output mine.png exists but was not made by trt-generate",
        "p.jsonl:8: a layout needs a caption",
    ):
        assert f"trt-generate: {line}" in error
    assert error.splitlines()[-1] == (
        "trt-generate: error: 7 of 9 prompts failed: p.jsonl:2, p.jsonl:3, p.jsonl:4, p.jsonl:5, p.jsonl:6, p.jsonl:7, "
        "p.jsonl:8"
    )
    assert names(folder) == ["a.png", "ideogram4-0009.png", "mine.png", "p.jsonl"]
    assert (folder / "mine.png").read_bytes() == b"mine"


def test_letters_that_no_font_has(run, capsys, monkeypatch):
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", ())
    write("p.txt", POSTER_LINE.replace("ALPS", "ÄLPS"))
    assert run("--prompt-file", "p.txt", "--layout", "plan.png", "--dry-run") == 0
    assert "warning: p.txt:1: the layout's font lacks Ä; --layout-font takes another" in capsys.readouterr().err


def test_warnings_name_their_line(run, capsys):
    write("p.jsonl", {"prompt": "x"}, {"caption": {"a": 1}})
    assert run("--prompt-file", "p.jsonl", "--check-caption", "warn", "--dry-run") == 0
    assert "trt-generate: warning: p.jsonl:2: the caption is not in order: it has" in capsys.readouterr().err


def test_strict_makes_nothing_when_a_line_is_bad(run, folder, loads, capsys):
    write(
        "p.jsonl", {"prompt": "x"}, {"prompt": "y", "seed": -1}, {"caption": json.loads(POSTER_LINE), "layout": "l.png"}
    )
    assert run("--prompt-file", "p.jsonl", "--strict", *FAST) == 1
    error = capsys.readouterr().err
    assert "p.jsonl:2: seed is -1" in error and "error: 1 of 3 prompts failed: p.jsonl:2" in error
    assert names(folder) == ["p.jsonl"] and not loads


def spoiled(monkeypatch, prompt):
    """A picture of `prompt` fails while it is made."""
    real = Pipeline.run

    def run(self, plan, *args, **kwargs):
        if plan.prompt == prompt:
            raise RuntimeError("the graph broke")
        return real(self, plan, *args, **kwargs)

    monkeypatch.setattr(Pipeline, "run", run)


@pytest.mark.parametrize(("strict", "made"), [((), ["0001", "0003"]), (("--strict",), ["0001"])])
def test_a_failure_on_the_way(run, folder, monkeypatch, capsys, strict, made):
    spoiled(monkeypatch, "y")
    assert run("--prompt-file", write("p.txt", "x", "y", "z"), *strict, *FAST) == 1
    assert names(folder) == [*(f"ideogram4-{number}.png" for number in made), "p.txt"]
    error = capsys.readouterr().err
    assert "p.txt:2: the graph broke" in error and "error: 1 of 3 prompts failed: p.txt:2" in error


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_interrupt_keeps_what_is_finished(demo_bundle, folder, run, sent, code):
    write("p.jsonl", {"prompt": "x", "steps": 1}, {"prompt": "y", "steps": 1000})
    command = [
        sys.executable,
        "-m",
        "runtime",
        "--bundle",
        demo_bundle,
        "--seed",
        1,
        "--prompt-file",
        folder / "p.jsonl",
        "--output",
        folder / "a.png",
    ]
    process = start(command)
    for line in iter(process.stderr.readline, ""):
        if "wrote" in line:
            break
    process.send_signal(sent)
    _, error = process.communicate(timeout=30)
    assert shell_code(process) == code and "Traceback" not in error
    assert names(folder) == ["a-0001.png", "p.jsonl"]
    assert read_settings(folder / "a-0001.png")["prompt"] == "x"
    if sent == signal.SIGINT:
        assert "1 of 2 prompts are done; the same command makes the others" in error
