"""The one list of what can be asked for, and that every entry derives from it."""

import argparse
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import Caption, Request, RequestError
from runtime.cli import prompt_file
from runtime.cli.options import build_parser
from runtime.cli.request_options import GROUPS, given_fields
from runtime.request import KINDS, descriptions
from serving.tensors import INPUTS

FIELDS = [field.name for field in fields(Request)]


def test_every_field_is_described():
    about = descriptions()
    assert list(about) == FIELDS
    assert all(text and text == text.strip() for text in about.values())


def test_every_field_is_an_option_of_the_command():
    """``--prompt`` stands beside ``--caption`` and ``--prompt-file``, which give prompts too."""
    options = {action.dest for action in build_parser()._actions}
    assert options >= set(FIELDS)
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(set(FIELDS) - {"prompt"})
    for action in build_parser()._actions:
        if action.dest in FIELDS and action.dest not in ("prompt", "guidance"):
            assert action.option_strings == [f"--{action.dest.replace('_', '-')}"]
            assert descriptions()[action.dest] in action.help
            assert tuple(action.choices or ()) == KINDS[action.dest].choices
            assert action.default is argparse.SUPPRESS, "Request alone knows the defaults"


def test_every_field_is_a_key_of_a_prompt_files_line():
    """Beside them a line has a caption instead of a prompt, and the files that it writes."""
    assert set(prompt_file._KEYS) == {*FIELDS, "caption", "output", "layout"}


def test_every_field_is_an_input_of_the_server():
    assert [spec.name for spec in INPUTS] == FIELDS
    assert [spec.name for spec in INPUTS if spec.required] == ["prompt"]


def test_what_the_command_line_leaves_out_is_left_to_the_request():
    args = build_parser().parse_args(["--prompt", "x"])
    assert given_fields(args) == {}
    assert Request(args.prompt, **given_fields(args)) == Request("x")


def test_what_the_command_line_says_is_in_the_request(tmp_path):
    given = {
        "negative_prompt": "y", "width": 512, "height": 256, "preset": "V4_TURBO_12", "guidance": 3.5, "mu": 0.5,
        "std": 1.25, "guidance_interval": (0.1, 0.8), "uncond_every": 2, "unconditional": "conditional", "seed": 2**40,
        "num_images": 3, "image": tmp_path / "a.png", "strength": 0.5, "fit": "pad", "mask": tmp_path / "m.png",
        "mask_feather": 3, "vae_tile": 512, "steps": 4,
    }  # fmt: skip
    assert set(given) == set(FIELDS) - {"prompt"}
    texts = {name: ":".join(map(str, v)) if isinstance(v, tuple) else str(v) for name, v in given.items()}
    words = [word for name, text in texts.items() for word in (f"--{name.replace('_', '-')}", text)]
    args = build_parser().parse_args(["--prompt", "x", *words])
    assert Request("x", **given_fields(args)) == Request("x", **given)
    args = build_parser().parse_args(["--prompt", "x", "--guidance-schedule", "7x2,3"])
    assert Request("x", **given_fields(args)).guidance == (7.0, 7.0, 3.0)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("width", np.int64(512), 512),
        ("width", np.array(512, np.uint16), 512),
        ("seed", np.uint64(2**64 - 1), 2**64 - 1),
        ("strength", np.float64(0.5), 0.5),
        ("strength", 1, 1.0),
        ("mu", np.int32(1), 1.0),
        ("guidance", [7, np.float32(3)], (7.0, 3.0)),
        ("guidance", np.array([7.0, 3.0]), (7.0, 3.0)),
        ("guidance", "7x2,3", (7.0, 7.0, 3.0)),
        ("guidance", 7, 7.0),
        ("guidance_interval", "0.1:0.8", (0.1, 0.8)),
        ("guidance_interval", np.array([0.25, 1.0]), (0.25, 1.0)),
        ("vae_tile", "512", 512),
        ("vae_tile", "auto", "auto"),
        ("image", "a.png", Path("a.png")),
        ("prompt", Caption("", ()), str(Caption("", ()))),
        ("negative_prompt", np.str_("a dog"), "a dog"),
    ],
)
def test_values_are_taken_as_they_come(name, value, wanted):
    taken = getattr(replace(Request("x"), **{name: value}), name)
    assert taken == wanted and type(taken) is type(wanted)


def test_pictures_are_taken_as_pixels():
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert np.array_equal(Request("x", image=Image.fromarray(pixels)).image, pixels)
    assert Request("x", image=pixels).image is pixels
    mask = Request("x", mask=Image.fromarray(np.array([[0, 255, 127, 128]], np.uint8))).mask
    assert mask.dtype == bool and mask.tolist() == [[False, True, False, True]]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("prompt", None, "prompt is None, wanted text"),
        ("prompt", b"a cat", "prompt is b'a cat', wanted text"),
        ("prompt", ["a cat", "a dog"], "prompt is a list, wanted one text: make a request for each"),
        ("prompt", 3, "prompt is 3, wanted text"),
        ("negative_prompt", ["x"], "negative_prompt is a list, wanted one text"),
        ("width", 512.0, "width is 512.0, wanted an integer"),
        ("width", "512", "width is '512', wanted an integer"),
        ("width", True, "width is True, wanted an integer"),
        ("width", np.bool_(True), "width is True, wanted an integer"),
        ("width", [512], r"width is \[512\], wanted an integer"),
        ("num_images", None, "num_images is None, wanted an integer"),
        ("num_images", 65, "num_images is 65, wanted 1 to 64"),
        ("num_images", 0, "num_images is 0, wanted 1 to 64"),
        ("steps", 0, "the number of steps is 0, wanted 1 to 1000"),
        ("preset", "V5", "preset is 'V5', wanted one of V4_QUALITY_48"),
        ("guidance", "7;3", "guidance schedule '7;3' has the entry '7;3'"),
        ("guidance", [7, "3"], r"guidance\[1\] is '3', wanted a number"),
        ("guidance", {}, "guidance is {}, wanted a number"),
        ("guidance", float("inf"), "guidance is inf, wanted a number of at most 10000"),
        ("mu", float("nan"), "mu is nan, wanted a number of at most 10000"),
        ("mu", 10**400, "mu is an integer of 1329 bits, wanted a number"),
        ("std", 0, "std is 0.0, wanted a number above 0"),
        ("guidance_interval", "0.1", "guidance_interval is '0.1', wanted A:B"),
        ("guidance_interval", (0.8, 0.1), "guidance_interval is 0.8:0.1, wanted two times"),
        ("guidance_interval", (0.1,), r"guidance_interval is \(0.1,\), wanted two times"),
        ("guidance_interval", 0.5, "guidance_interval is 0.5, wanted two times"),
        ("uncond_every", 0, "uncond_every is 0, wanted 1 to 1000 steps"),
        ("unconditional", "none", "unconditional is 'none', wanted one of graph, conditional, off"),
        ("seed", -1, r"seed is -1, wanted an integer from 0 to 2\*\*64 - 1"),
        ("seed", 2**64, "seed is 18446744073709551616, wanted an integer"),
        ("strength", float("nan"), "strength is nan, wanted 0 to 1"),
        ("fit", "zoom", "fit is 'zoom', wanted one of crop, pad, stretch"),
        ("mask_feather", 257, "mask_feather is 257, wanted 0 to 256 pixels"),
        ("image", 3, "image is 3, wanted a file name, a PIL image, an encoded file or an array"),
        ("image", b"not a picture", "the image is not a picture that can be read"),
        ("image", Image.new("F", (2, 2)), "the image has floating-point pixels"),
        ("vae_tile", 1.5, "vae_tile is 1.5, wanted an integer"),
    ],
)
def test_refused_values_are_named(name, value, message):
    with pytest.raises(RequestError, match=f"^{message}"):
        replace(Request("x"), **{name: value})


def test_unknown_fields_are_no_surprise():
    with pytest.raises(TypeError, match="widht"):
        Request("x", widht=3)
