"""Optimization profiles: what is asked for, and what is refused."""

import pytest
from support.engines.real import SIZES, SMALL_SIZES

from export.build.command import main
from export.demo_model import DEMO_CHECKPOINT
from export.engine.builder import activation_bytes
from export.engine.profile_option import Around, ProfileOption, parse_profile
from export.engine.sizes import Extent, extents, limits_of, size_ranges, together, used
from export.graph.records import graph_record
from model.checkpoint.directory import open_checkpoint
from runtime.bundle.graph_specs import SizeRange
from runtime.bundle.manifest import SizeSpec

RELEASED, TEXT = SizeSpec(16, 256, 2048, 1024, 6.0), 2048
"""Sizes of the released model."""


def made(*profiles, minimum=None, maximum=None, optimum=None, sizes=RELEASED):
    """The profiles of a build with these options, as (smallest, best, largest side) and the same of the text."""
    limits = limits_of(sizes, TEXT, minimum, maximum, 1)
    found = extents(limits, sizes, optimum, profiles)
    return [
        tuple((size.minimum, size.optimum, size.maximum) for size in (extent.side, extent.text)) for extent in found
    ]


ALL_TEXT = (1, 256, 2048)


@pytest.mark.parametrize(
    ("options", "sides"),
    [
        ({}, [(256, 512, 768), (256, 1024, 2048)]),
        ({"maximum": 1024}, [(256, 512, 768), (256, 1024, 1024)]),
        ({"maximum": 768}, [(256, 512, 768), (256, 768, 768)]),
        ({"maximum": 512}, [(256, 512, 512)]),
        ({"maximum": 256}, [(256, 256, 256)]),
        ({"minimum": 640}, [(640, 640, 768), (640, 1024, 2048)]),
        ({"minimum": 1024}, [(1024, 1024, 2048)]),
        ({"minimum": 1536}, [(1536, 1536, 2048)]),
        ({"optimum": 1024}, [(256, 1024, 2048)]),
        ({"optimum": 512, "maximum": 768}, [(256, 512, 768)]),
        ({"sizes": SizeSpec(16, 128, 2048, 128, 6.0)}, [(128, 128, 2048)]),
    ],
)
def test_without_profiles_the_optima_follow_the_limits(options, sides):
    """The released model's default is 1024. The demo's is its minimum: nothing is half of that."""
    assert made(**options) == [(side, ALL_TEXT) for side in sides]


def test_profiles_as_asked_for():
    assert made("1024", "512:256..768") == [((256, 512, 768), ALL_TEXT), ((256, 1024, 2048), ALL_TEXT)]
    assert made("512", maximum=1024) == [((256, 512, 1024), ALL_TEXT)]
    assert made("1024,text=64", "1024,text=512:65..2048", "1024,text=64") == [
        ((256, 1024, 2048), (1, 64, 2048)),
        ((256, 1024, 2048), (65, 512, 2048)),
    ]
    assert made("1024:1024..1024,text=7:7..7") == [((1024, 1024, 1024), (7, 7, 7))]


def test_forms_of_the_option():
    assert parse_profile("512") == ProfileOption(Around(512, None), None)
    assert parse_profile("512:256..768,text=64:1..128") == ProfileOption(Around(512, (256, 768)), Around(64, (1, 128)))


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("", "--profile '' is not understood, wanted PX, PX:MIN..MAX, or either of them with ,text=TOKENS or"),
        ("512x512", "--profile '512x512' is not understood"),
        ("512:256-768", "--profile '512:256-768' is not understood"),
        ("512:..768", "is not understood"),
        ("512,text=", "is not understood"),
        ("512,256", "is not understood"),
        ("-512", "is not understood"),
        ("٥١٢", "is not understood"),
        ("9" * 5000, "is not understood"),
        (
            "512:640..768",
            "--profile 512:640..768: the side 512, of 640 to 768, is out of order or range, wanted multiples of 16 "
            "from 256 to 2048",
        ),
        ("500", "the side 500, of 256 to 2048, is out of order or range, wanted multiples of 16"),
        ("512:256..4096", "of 256 to 4096, is out of order or range"),
        ("512:250..768", "of 250 to 768, is out of order or range"),
        ("512,text=4096", "the text of 4096 tokens, of 1 to 2048, is out of order or range, wanted 1 to 2048"),
        ("512,text=64:100..200", "the text of 64 tokens, of 100 to 200, is out of order or range"),
        ("512,text=0", "the text of 0 tokens, of 1 to 2048, is out of order or range"),
    ],
)
def test_profiles_that_cannot_be(profile, message):
    with pytest.raises(ValueError) as caught:
        made(profile)
    assert message in str(caught.value)


def test_profiles_keep_to_the_limits():
    with pytest.raises(ValueError, match=r"--profile 1024: the side 1024, of 256 to 768, is out of .* from 256 to 768"):
        made("1024", maximum=768)
    with pytest.raises(ValueError, match=r"--opt-size: the side 1024, of 256 to 768, is out of order"):
        made(optimum=1024, maximum=768)
    with pytest.raises(ValueError, match="--min-size 1024 is above --max-size 768"):
        made(minimum=1024, maximum=768)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--profile", "512", "--opt-size", "512"), "--profile and --opt-size 512 exclude each other"),
        (("--profile", "512:x"), "--profile '512:x' is not understood, wanted PX, PX:MIN..MAX"),
        (
            ("--profile", "512:500..768"),
            "--profile 512:500..768: the side 512, of 500 to 768, is out of order or range",
        ),
        (("--profile", "512", "--backend", "ort"), "--profile goes with --backend rtx or tensorrt"),
    ],
)
def test_options_that_cannot_be(tmp_path, capsys, arguments, message):
    command = ["--backend", "rtx", "--precision", "bf16", "--output", str(tmp_path / "bundle"), *arguments]
    assert main(command) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_tiles_are_no_larger_than_what_the_profiles_take():
    limits = limits_of(RELEASED, TEXT, None, None, 1)
    small = extents(limits, RELEASED, None, ["512:256..768"])
    assert size_ranges(small[0], together(small, limits), 16)["tile_H"] == SizeRange(256, 768, 768)
    assert size_ranges(small[0], limits, 16)["tile_H"] == SizeRange(256, 1152, 1152)


def test_a_graph_has_the_profiles_that_differ_for_it():
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    inputs = {
        stage: graph_record(stage, checkpoint).inputs for stage in ("text_encoder", "dit_cond", "vae_decoder_tile")
    }
    counts = {stage: len(used(tensors, (SMALL_SIZES, SIZES))) for stage, tensors in inputs.items()}
    assert counts == {"text_encoder": 1, "dit_cond": 2, "vae_decoder_tile": 1}
    short = size_ranges(
        Extent(SizeRange(256, 1024, 2048), SizeRange(1, 64, 128)), limits_of(RELEASED, TEXT, None, None, 1), 16
    )
    counts = {stage: len(used(tensors, (SIZES, short))) for stage, tensors in inputs.items()}
    assert counts == {"text_encoder": 2, "dit_cond": 2, "vae_decoder_tile": 1}


def test_memory_of_each_profile():
    log = [
        "Constructing optimization profile number 0 [1/2].",
        "Layer: a Host Persistent: 80 bytes Device Persistent: 0 bytes Scratch Memory: 500 bytes\n"
        "Total Activation Memory: 700 bytes",
        "Constructing optimization profile number 1 [2/2].",
        "Layer: a [profile 1] Host Persistent: 80 bytes Device Persistent: 0 bytes Scratch Memory: 900 bytes",
    ]
    assert activation_bytes(log, 2) == (700, 900)
    assert activation_bytes(log[:2], 2) == (700, 700), "of the second it says nothing"
    assert activation_bytes(log[3:], 2) == (900, 900)
    assert activation_bytes([], 2) == (0, 0)
    assert activation_bytes(log, 1) == (700,)
