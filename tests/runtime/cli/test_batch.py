"""``trt-generate`` with captions and with many prompts, on the demo bundle."""

import io
import json
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.caption_examples import POSTER, POSTER_LINE
from support.processes import shell_code, start

from runtime import Caption, Pipeline
from runtime.cli.main import main
from runtime.image.png import png, read_settings
from runtime.layout import fonts

FAST = ("--steps", 1, "--quiet")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(demo_bundle):
    return lambda *arguments: main(["--bundle", str(demo_bundle), *map(str, arguments)])


@pytest.fixture
def loads(monkeypatch):
    """How often a pipeline is loaded, and with which options."""
    calls, load = [], Pipeline.load
    monkeypatch.setattr(Pipeline, "load", lambda *args, **kwargs: calls.append(kwargs) or load(*args, **kwargs))
    return calls


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def write(name, *lines):
    with open(name, "w", encoding="utf-8") as file:
        file.writelines(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    return name


def prompts_of(folder):
    return {file.name: read_settings(file)["prompt"] for file in sorted(folder.glob("*.png"))}


# One caption


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


# Many prompts


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
        "p.jsonl:7: the output mine.png exists and is no picture of this program",
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


# Pictures to start from


@pytest.fixture
def pictures(folder):
    """A folder with a prompt file's pictures in it."""
    (folder / "in").mkdir()
    rows, columns = np.mgrid[0:256, 0:320]
    picture = np.stack((rows, columns * 255 // 319, rows ^ columns), axis=-1).astype(np.uint8)
    mask = np.zeros((256, 320), np.uint8)
    mask[:64] = 255
    for name, pixels in {"a": picture, "b": picture[::-1], "mask": mask, "small": mask[:32]}.items():
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / "in" / f"{name}.png")
    return folder / "in"


def test_lines_with_pictures(run, folder, pictures, demo_bundle):
    """Each line's picture is that of a run by itself; what the line does not say is the command's."""
    lines = [
        {"prompt": "x", "image": "a.png", "strength": 0.4},
        {"prompt": "x", "image": str(pictures / "b.png"), "mask": "mask.png", "mask_feather": 4},
        {"prompt": "x", "image": "a.png", "width": 256, "height": 256, "fit": "crop"},
        {"prompt": "x", "strength": 1},
    ]
    write("in/p.jsonl", *lines)
    assert run("--prompt-file", "in/p.jsonl", "--seed", 1, "--strength", 0.7, *FAST) == 0
    pipeline = Pipeline.load(demo_bundle)
    wanted = [
        {"image": pictures / "a.png", "strength": 0.4},
        {"image": pictures / "b.png", "mask": pictures / "mask.png", "feather": 4, "strength": 0.7},
        {"image": pictures / "a.png", "width": 256, "height": 256, "fit": "crop", "strength": 0.7},
        {},
    ]
    for number, arguments in enumerate(wanted, start=1):
        made = np.asarray(Image.open(folder / f"ideogram4-{number:04d}.png"))
        assert np.array_equal(made, pipeline.generate("x", seed=1, steps=1, **arguments).images[0]), number


def test_bad_pictures_are_found_before_anything_is_loaded(run, folder, pictures, loads, capsys):
    (pictures / "text.png").write_text("no picture")
    write(
        "in/p.jsonl",
        {"prompt": "x", "image": "none.png"},
        {"prompt": "x", "image": "text.png"},
        {"prompt": "x", "image": "a.png", "mask": "small.png"},
        {"prompt": "x", "mask": "mask.png"},
        {"prompt": "x", "image": "a.png", "width": 256, "height": 256},
        {"prompt": "x", "image": "a.png", "strength": 2},
        {"prompt": "x", "image": "a.png", "mask_feather": 3},
        {"prompt": "x", "strength": 0.5},
        {"prompt": "x", "fit": "pad"},
    )
    assert run("--prompt-file", "in/p.jsonl", *FAST) == 1
    error = capsys.readouterr().err
    for line in (
        "1: No such file or directory: in/none.png",
        "2: in/text.png is not a picture that can be read",
        "3: the mask in/small.png is 320x32 and the picture 320x256, wanted the same size",
        "4: a mask needs an image to start from, and none is given",
        "5: the picture to start from is 320x256 and the result 256x256, which is another aspect ratio",
        "6: strength is 2.0, wanted 0 to 1",
        "7: feather 3 needs a mask, and none is given",
        "8: strength below 1 needs an image to start from",
        "9: fit needs an image to start from",
    ):
        assert f"trt-generate: in/p.jsonl:{line}" in error
    assert "Traceback" not in error and not loads and names(folder) == ["in"]


def test_another_picture_is_not_finished(run, folder, pictures, loads, capsys):
    write("in/p.jsonl", {"prompt": "x", "image": "a.png", "mask": "mask.png"})
    options = ("--prompt-file", "in/p.jsonl", "--seed", 1, *FAST)
    assert run(*options) == 0
    before = (folder / "ideogram4-0001.png").read_bytes()
    assert run(*options) == 0 and len(loads) == 1
    for changed, source in (("a.png", "b.png"), ("mask.png", "a.png")):
        kept = (pictures / changed).read_bytes()
        shutil.copy(pictures / source, pictures / changed)
        assert run(*options) == 1
        assert "ideogram4-0001.png exists and was made with another start" in capsys.readouterr().err
        (pictures / changed).write_bytes(kept)
    assert run(*options) == 0 and len(loads) == 1
    assert (folder / "ideogram4-0001.png").read_bytes() == before


def test_a_picture_that_changes_after_the_check(run, folder, pictures, monkeypatch, capsys):
    """Pictures are read again when their turn comes: all of them at once may be too many to hold."""
    load = Pipeline.load

    def spoil(*args, **kwargs):
        shutil.copy(pictures / "b.png", pictures / "a.png")
        return load(*args, **kwargs)

    monkeypatch.setattr(Pipeline, "load", spoil)
    write("in/p.jsonl", {"prompt": "x", "image": "a.png"}, {"prompt": "x", "image": "b.png"})
    assert run("--prompt-file", "in/p.jsonl", *FAST) == 1
    assert "in/p.jsonl:1: the picture to start from or its mask (a.png) has changed since" in capsys.readouterr().err
    assert names(folder) == ["ideogram4-0002.png", "in"]


# A second run


def test_a_second_run_makes_what_is_missing(run, folder, loads, capsys):
    write("p.txt", "x", "y", "z")
    assert run("--prompt-file", "p.txt", "--seed", 1, *FAST) == 0
    (folder / "ideogram4-0002.png").unlink()
    before = {name: (folder / name).stat().st_mtime_ns for name in ("ideogram4-0001.png", "ideogram4-0003.png")}
    capsys.readouterr()
    assert run("--prompt-file", "p.txt", "--seed", 1, "--steps", 1) == 0
    error = capsys.readouterr().err
    assert "2 of 3 are finished already" in error and "wrote ideogram4-0002.png" in error
    assert before == {name: (folder / name).stat().st_mtime_ns for name in before}
    assert run("--prompt-file", "p.txt", "--seed", 1, *FAST) == 0 and len(loads) == 2, "a third run has nothing to do"


def test_without_a_seed_any_seed_is_the_wanted_one(run, folder, loads):
    write("p.txt", "x")
    assert run("--prompt-file", "p.txt", *FAST) == 0
    assert run("--prompt-file", "p.txt", *FAST) == 0 and len(loads) == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("--seed", 2), "seed"),
        (("--width", 320), "width"),
        (("--guidance", 3), "sampling"),
        (("--unconditional", "conditional"), "unconditional"),
        (("--wrap",), "prompt"),
    ],
)
def test_other_settings_are_not_finished(run, folder, capsys, change, named):
    write("p.txt", "x")
    assert run("--prompt-file", "p.txt", "--seed", 1, *FAST) == 0
    before = (folder / "ideogram4-0001.png").read_bytes()
    options = ("--prompt-file", "p.txt", *(() if "--seed" in change else ("--seed", 1)), *change)
    assert run(*options, *FAST) == 1
    error = capsys.readouterr().err
    assert f"p.txt:1: the output ideogram4-0001.png exists and was made with another {named}; choose another" in error
    assert (folder / "ideogram4-0001.png").read_bytes() == before
    assert run(*options, "--overwrite", *FAST) == 0
    assert (folder / "ideogram4-0001.png").read_bytes() != before


def test_another_bundle_is_not_finished(run, folder, demo_bundle, capsys):
    write("p.txt", "x")
    assert run("--prompt-file", "p.txt", *FAST) == 0
    other = Path(shutil.copytree(demo_bundle, folder / "other"))
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": "0" * 64}))
    assert main(["--bundle", str(other), "--prompt-file", "p.txt", "--steps", "1", "--quiet"]) == 1
    assert "was made with another fingerprint" in capsys.readouterr().err


def test_part_of_a_batch_is_not_finished(run, folder):
    write("p.txt", "x")
    options = ("--prompt-file", "p.txt", "--num-images", 2, "--seed", 1, *FAST)
    assert run(*options) == 0
    wanted = (folder / "ideogram4-0001-1.png").read_bytes()
    (folder / "ideogram4-0001-1.png").unlink()
    assert run(*options) == 0
    assert (folder / "ideogram4-0001-1.png").read_bytes() == wanted
    (folder / "ideogram4-0001-0.png").write_bytes(wanted)  # the second picture in the place of the first
    assert run(*options) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        png(np.zeros((16, 16, 3), np.uint8), {})[:60],
        png(np.zeros((16, 16, 3), np.uint8), {}),
        png(np.zeros((16, 16, 3), np.uint8), ["x"]),
    ],
    ids=["empty", "header", "cut", "no settings", "odd settings"],
)
def test_files_that_are_no_finished_pictures(run, folder, capsys, content):
    write("p.txt", "x")
    (folder / "ideogram4-0001.png").write_bytes(content)
    assert run("--prompt-file", "p.txt", *FAST) == 1
    error = capsys.readouterr().err
    assert "p.txt:1: the output ideogram4-0001.png exists and" in error and "Traceback" not in error
    assert (folder / "ideogram4-0001.png").read_bytes() == content


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
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
