"""Prompt files whose lines start from pictures."""

import shutil

import numpy as np
import pytest
from PIL import Image
from support.command_line import FAST, names, write

from runtime import Pipeline


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
        {"image": pictures / "b.png", "mask": pictures / "mask.png", "mask_feather": 4, "strength": 0.7},
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
        "7: mask_feather 3 needs a mask, and none is given",
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
