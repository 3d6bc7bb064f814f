"""``trt-generate`` with one caption: files, wrapping, checks, layouts."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image
from support.caption_examples import POSTER, POSTER_LINE
from support.command_line import FAST, names, prompts_of

from runtime import Caption, Pipeline
from runtime.image.output_files import read_settings


def test_caption_file(run, folder):
    (folder / "c.json").write_text(json.dumps(json.loads(POSTER_LINE), indent=2), encoding="utf-8")
    assert run("--caption", "c.json", "--seed", 1, *FAST) == 0
    assert read_settings(folder / "ideogram4.png")["prompt"] == POSTER_LINE
    assert run("--prompt", POSTER_LINE, "--seed", 1, "--output", "b.png", *FAST) == 0
    one, other = (np.asarray(Image.open(folder / name)) for name in ("ideogram4.png", "b.png"))
    assert np.array_equal(one, other)


def test_pipeline_takes_a_caption(demo_bundle):
    made = Pipeline.load(demo_bundle).generate(POSTER, steps=1, seed=1)
    assert made.used["prompt"] == POSTER_LINE


def test_wrapped_prompt(run, folder):
    assert run("--prompt", "a red circle", "--wrap", *FAST) == 0
    assert prompts_of(folder) == {"ideogram4.png": str(Caption.wrap("a red circle"))}


def test_layout_is_drawn_at_the_pictures_size_before_it(run, folder, monkeypatch):
    seen = []
    monkeypatch.setattr(Pipeline, "load", lambda *a, **k: seen.append(names(folder)) or pytest.fail("not to be loaded"))
    with pytest.raises(pytest.fail.Exception):
        run("--prompt", POSTER_LINE, "--layout", "plan.png", "--width", 320, "--height", 272)
    assert seen == [["plan.png"]]
    assert Image.open(folder / "plan.png").size == (320, 272)


def test_dry_run_draws_and_makes_nothing(run, folder, loads, capsys):
    assert run("--prompt", POSTER_LINE, "--layout", "plan.png", "--dry-run", "--json", "--seed", 3) == 0
    told = capsys.readouterr()
    assert names(folder) == ["plan.png"] and not loads
    assert json.loads(told.out)["seed"] == 3 and "would write ideogram4.png, seed 3" in told.err
    assert run("--prompt", POSTER_LINE, "--layout", "plan.png", "--dry-run") == 0, "the same layout may stay"
    (folder / "plan.png").write_bytes(b"mine")
    assert run("--prompt", POSTER_LINE, "--layout", "plan.png", "--dry-run") == 1
    assert "the output plan.png exists" in capsys.readouterr().err
    assert (folder / "plan.png").read_bytes() == b"mine"
    assert run("--prompt", POSTER_LINE, "--layout", "plan.png", "--dry-run", "--overwrite", "--quiet") == 0
    assert Image.open(folder / "plan.png").size == (128, 128)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--prompt", '{"a":1}'),
            "the caption is not in order: it has the key 'a', wanted only high_level_description",
        ),
        (("--caption", "missing.json"), "No such file or directory: missing.json"),
        (("--caption", "latin1.json"), "the file latin1.json is not UTF-8 text: byte 1 is invalid"),
        (("--caption", "text.json"), "the caption is not in order: it is not JSON: Expecting value: line 1 column 1"),
        (("--caption", "text.json", "--check-caption", "off"), "it is not JSON"),
        (("--caption", "text.json", "--wrap"), "--wrap is for plain text, and --caption is a caption already"),
        (("--prompt", " ", "--wrap"), "the prompt is empty"),
        (("--prompt", "x", "--layout", "plan.png"), "a layout needs a caption, and the prompt is plain text; --wrap"),
        (("--prompt", '{"a":1}', "--check-caption", "off", "--layout", "plan.png"), "it has the key 'a', wanted only"),
        (("--prompt", POSTER_LINE, "--layout", "no/plan.png"), "the output directory no does not exist"),
        (("--prompt", POSTER_LINE, "--layout", "ideogram4.png"), "the output ideogram4.png is already that of another"),
        (("--prompt", POSTER_LINE, "--layout", "p.png", "--layout-font", "text.json"), "text.json is not a font"),
        (("--prompt", POSTER_LINE, "--layout-font", "missing.ttf"), "No such file or directory: missing.ttf"),
    ],
)
def test_refused_captions(run, folder, loads, capsys, arguments, message):
    (folder / "latin1.json").write_bytes(b'"\xe9"')
    (folder / "text.json").write_text("a red circle")
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("trt-generate: error: ") and error.count("\n") == 1
    assert names(folder) == ["latin1.json", "text.json"] and not loads


def test_caption_with_a_warning(run, folder, capsys):
    assert run("--prompt", '{"a":1}', "--check-caption", "warn", "--steps", 1) == 0
    assert "trt-generate: warning: the caption is not in order: it has" in capsys.readouterr().err
    assert run("--prompt", '{"a":1}', "--check-caption", "off", "--steps", 1, "--output", "b.png") == 0
    assert "warning" not in capsys.readouterr().err
    assert prompts_of(folder) == {"b.png": '{"a":1}', "ideogram4.png": '{"a":1}'}


def test_captions_and_prompts_from_standard_input(run, folder, monkeypatch):
    for option, text in (("--caption", POSTER_LINE), ("--prompt-file", f"x\n{POSTER_LINE}\n")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert run(option, "-", *FAST) == 0
    assert prompts_of(folder) == {
        "ideogram4.png": POSTER_LINE,
        "ideogram4-0001.png": "x",
        "ideogram4-0002.png": POSTER_LINE,
    }
