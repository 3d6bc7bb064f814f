"""Prompt files: what their lines ask for, and what is wrong with them."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.caption_examples import POSTER, POSTER_LINE

from runtime.cli.jobs import Job
from runtime.cli.prompt_file import job_of_line, jsonl_folder, numbered_line, read_lines
from runtime.prompt.caption import Caption
from runtime.prompt.reading import PromptReader
from runtime.request import Request

REQUEST = Request("", width=512, steps=4, guidance=5.0, seed=9)
DEFAULTS = Job(REQUEST, Path("out/a.png"))
READER = PromptReader("error", False, lambda text: None)


def job(line, jsonl=True, defaults=DEFAULTS, reader=READER):
    return job_of_line("p:3", 3, line, Path("in") if jsonl else None, defaults, reader)


def lines(tmp_path, data):
    (tmp_path / "p.txt").write_bytes(data)
    return list(read_lines(str(tmp_path / "p.txt")))


def test_lines_keep_their_numbers(tmp_path):
    file = tmp_path / "p.txt"
    assert lines(tmp_path, b"\xef\xbb\xbfone\r\n\n  \n two \n") == [(f"{file}:1", 1, "one"), (f"{file}:4", 4, " two ")]
    assert lines(tmp_path, b"last") == [(f"{file}:1", 1, "last")]


def test_only_line_ends_end_a_line(tmp_path):
    """`str.splitlines` also cuts at separators that may be part of a prompt."""
    assert [text for *_, text in lines(tmp_path, "a\x0b\u2028b\nc".encode())] == ["a\x0b\u2028b", "c"]


def test_files_without_a_prompt(tmp_path):
    for data in (b"", b"\n \r\n"):
        with pytest.raises(ValueError, match=r"the prompt file .*p.txt has no prompt"):
            lines(tmp_path, data)
    with pytest.raises(FileNotFoundError, match="missing"):
        list(read_lines(str(tmp_path / "missing")))


def test_kinds_of_files():
    assert (jsonl_folder("a/b.jsonl"), jsonl_folder("b.JSONL")) == (Path("a"), Path("."))
    assert not any(map(jsonl_folder, ("-", "a.txt", "a.json", "jsonl")))


def test_a_line_of_text_has_the_commands_options():
    wanted = Job(replace(REQUEST, prompt="a cat"), Path("out/a-0003.png"), "p:3")
    assert job("a cat", jsonl=False) == wanted
    assert job('{"prompt": "a cat"}') == wanted
    assert job(POSTER_LINE, jsonl=False).request.prompt == POSTER_LINE
    wrapping = PromptReader("error", True, lambda text: None)
    assert job("a cat", jsonl=False, reader=wrapping).request.prompt == str(Caption.wrap("a cat"))


def test_a_line_overrides_them():
    line = (
        '{"prompt": "x", "output": "b.png", "layout": "plan.png", "width": 256, "height": 272, "steps": 2, "mu": 1, '
        '"guidance": [7, 3.5], "std": 2.5, "seed": 1, "num_images": 2, "unconditional": "conditional"}'
    )
    request = Request(
        "x",
        width=256,
        height=272,
        steps=2,
        guidance=(7.0, 3.5),
        mu=1.0,
        std=2.5,
        seed=1,
        num_images=2,
        unconditional="conditional",
    )
    assert job(line) == Job(request, Path("out/b.png"), "p:3", Path("out/plan.png"))


def test_a_line_names_a_picture_beside_its_file():
    line = '{"prompt": "x", "image": "a.png", "mask": "/m.png", "strength": 1, "fit": "crop", "mask_feather": 3}'
    made = job(line).request
    assert (made.image, made.mask) == (Path("in/a.png"), Path("/m.png"))
    assert (made.strength, made.fit, made.mask_feather) == (1.0, "crop", 3)
    defaults = replace(DEFAULTS, request=replace(REQUEST, image=Path("b.png"), strength=0.3))
    made = job('{"prompt": "x", "fit": "pad"}', defaults=defaults).request
    assert (made.image, made.strength, made.fit, made.mask) == (Path("b.png"), 0.3, "pad", None)


def test_a_caption_in_a_line_is_put_in_one_line():
    spaced = POSTER_LINE.replace(",", " , ").replace(":", " : ").replace("# ", "#")
    assert Caption.parse(job(f'{{"caption" : {spaced} }}').request.prompt) == Caption.parse(spaced)
    assert job(f'{{"caption": {POSTER_LINE}}}').request.prompt == str(POSTER)


@pytest.mark.parametrize(
    ("line", "preset", "steps"),
    [
        ('{"prompt": "x"}', None, 4),
        ('{"prompt": "x", "preset": "V4_TURBO_12"}', "V4_TURBO_12", None),
        ('{"prompt": "x", "steps": 3}', None, 3),
        ('{"prompt": "x", "steps": 3, "preset": "V4_TURBO_12"}', "V4_TURBO_12", 3),
    ],
)
def test_preset_and_steps_take_each_others_place(line, preset, steps):
    made = job(line).request
    assert (made.preset, made.steps) == (preset, steps)


@pytest.mark.parametrize(("text", "weights"), [("7", 7.0), ('"7x2,3"', (7.0, 7.0, 3.0)), ("[1, 2.5]", (1.0, 2.5))])
def test_guidance_of_a_line(text, weights):
    assert job(f'{{"prompt": "x", "guidance": {text}}}').request.guidance == weights


@given(st.integers(1, 10**6), st.sampled_from(["a.png", "dir/b.c.png", "noend"]))
def test_numbered_names_sort_and_stay_in_their_folder(number, name):
    file = numbered_line(Path(name), number)
    assert file.parent == Path(name).parent and file.suffix == Path(name).suffix
    assert file.stem == f"{Path(name).stem}-{number:04d}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a cat", "the line is not in order: it is not JSON: Expecting value"),
        ('{"prompt": "x"', "the line is not in order: it is not JSON: Expecting ',' delimiter"),
        ('{"prompt": "x", "prompt": "y"}', "the key 'prompt' is there twice"),
        ('["x"]', r"the line is \['x'\], wanted an object"),
        ('{"seed": 1}', "the line has neither a prompt nor a caption"),
        ('{"prompt": "x", "caption": {}}', "the line has both a prompt and a caption"),
        (
            '{"prompt": "x", "sed": 1}',
            "the line has the key 'sed', wanted only prompt, caption, output",
        ),
        ('{"prompt": ["x"]}', r"prompt is \['x'\], wanted text"),
        ('{"prompt": "{}"}', "it lacks the key compositional_deconstruction"),
        ('{"caption": "x"}', "it is 'x', wanted an object"),
        ('{"prompt": "x", "seed": "1"}', "seed is '1', wanted an integer"),
        ('{"prompt": "x", "seed": 1.0}', "seed is 1.0, wanted an integer"),
        ('{"prompt": "x", "seed": true}', "seed is True, wanted an integer"),
        ('{"prompt": "x", "seed": null}', "seed is None, wanted an integer"),
        ('{"prompt": "x", "width": [256]}', r"width is \[256\], wanted an integer"),
        ('{"prompt": "x", "output": ""}', "output is '', wanted a file name"),
        ('{"prompt": "x", "mu": "0"}', "mu is '0', wanted a number"),
        ('{"prompt": "x", "mu": 1%s}' % ("0" * 400), "mu is an integer of 1329 bits, wanted a number"),
        ('{"prompt": "x", "std": NaN}', "NaN is not a number"),
        ('{"prompt": "x", "guidance": {}}', "guidance is {}, wanted a number"),
        ('{"prompt": "x", "guidance": "7;3"}', "guidance schedule '7;3' has the entry '7;3'"),
        ('{"prompt": "x", "guidance": [7, "3"]}', r"guidance\[1\] is '3', wanted a number"),
        ('{"prompt": "x", "num_images": 65}', "num_images is 65, wanted 1 to 64"),
        ('{"prompt": "x", "image": 3}', "image is 3, wanted a file name"),
        ('{"prompt": "x", "mask": ""}', "mask is '', wanted a file name"),
        ('{"prompt": "x", "strength": "1"}', "strength is '1', wanted a number"),
        ('{"prompt": "x", "strength": 1.5}', "strength is 1.5, wanted 0 to 1"),
        ('{"prompt": "x", "fit": "zoom"}', "fit is 'zoom', wanted one of crop, pad, stretch"),
        ('{"prompt": "x", "mask_feather": 0.5}', "mask_feather is 0.5, wanted an integer"),
        ('{"prompt": "x", "mask_feather": 300}', "mask_feather is 300, wanted 0 to 256 pixels"),
    ],
)
def test_refused_lines(line, message):
    with pytest.raises(ValueError, match=message):
        job(line)
