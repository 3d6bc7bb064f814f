"""Optimization profiles: what is asked for, what is refused, and what TensorRT-RTX really builds of them."""

import re

import pytest
from support.engines.real import SIZES, SMALL_SIZES, engine, stage_options

from export.build.command import main
from export.demo_model import DEMO_CHECKPOINT
from export.engine.builder import activation_bytes, build_plan
from export.engine.files import kernels_from_json
from export.engine.profile_option import Around, ProfileOption, parse_profile
from export.engine.sizes import Extent, extents, limits_of, shapes, size_ranges, together, used
from export.graph.records import graph_record
from export.graph.stage import export_stage
from model.checkpoint.directory import open_checkpoint
from runtime.bundle.graph_specs import SizeRange
from runtime.bundle.manifest import SizeSpec, read_manifest
from runtime.tensorrt.profiles import choose_profile

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


LISTED = re.compile(r"MinShape: \[([\d,]+)\], OptShape: \[([\d,]+)\], MaxShape: \[([\d,]+)\]")


def test_the_builder_has_the_profiles_that_it_was_given(tmp_path):
    """Read back from its own list of inputs at the end of the build, which needs no driver."""
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    options = stage_options(checkpoint, "dit_uncond", "base", "bf16", linked=False)
    graph, _ = export_stage(checkpoint, "dit_uncond", options, tmp_path, quiet=True)
    inputs = graph_record("dit_uncond", checkpoint).inputs
    profiles = [shapes(inputs, ranges) for ranges in used(inputs, (SMALL_SIZES, SIZES))]
    built = build_plan(tmp_path / graph.onnx, tmp_path / "x.plan", "rtx", ("sm89",), profiles)
    found = {}
    for line in "\n".join(built.log).split("\n"):
        if line.startswith(" Name: ") and "IOMode: Input" in line:
            name = line.removeprefix(" Name: ").partition(",")[0]
            found[name] = [
                tuple(tuple(int(size) for size in shape.split(",")) for shape in triple)
                for triple in LISTED.findall(line)
            ]
    assert found == {tensor.name: [profile[tensor.name] for profile in profiles] for tensor in inputs}
    small, large = built.activation_bytes
    # Of latents alone: 48² image tokens at most and 128².
    assert 0 < small < large / 4


def test_an_engine_with_two_profiles(tmp_path):
    """Each has all kernels of the engine with one, and the report is about the larger."""
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    spec, _, report = engine(
        checkpoint, "dit_uncond", tmp_path / "two", targets=("sm89",), profiles=(SMALL_SIZES, SIZES)
    )
    one, _, alone = engine(checkpoint, "dit_uncond", tmp_path / "one", targets=("sm89",))
    assert [profile.sizes["N"] for profile in spec.profiles] == [SMALL_SIZES["N"], SIZES["N"]]
    assert spec.profiles[1].activation_bytes == one.activation_bytes == spec.activation_bytes
    assert report["build"]["profiles"] == (32**2, 64**2) and report["build"]["rows"] == 64**2
    assert not report["problems"] and not report["opaque"]
    for figure in ("kernels", "kinds", "block_kernels", "products", "attentions", "copies"):
        assert report[figure] == alone[figure], figure
    listing = tmp_path / "two" / spec.plan.replace(".plan", ".kernels.json")
    kernels = kernels_from_json(listing.read_text(), "x")
    assert sum(kernel.profile == 0 for kernel in kernels) == sum(kernel.profile == 1 for kernel in kernels) > 0


def test_a_bundle_with_two_profiles(tmp_path):
    """By the command; the runtime chooses from the manifest."""
    bundle = tmp_path / "bundle"
    command = ["--backend", "rtx", "--target", "sm89", "--precision", "bf16", "--output", str(bundle), "--quiet"]
    assert main([*command, "--profile", "512:256..1024,text=128", "--profile", "128:128..256,text=32"]) == 0
    (engines,) = read_manifest(bundle).engines.values()
    assert {stage: len(spec.profiles) for stage, spec in engines.graphs.items()} == {
        "text_encoder": 2,
        "dit_cond": 2,
        "dit_uncond": 2,
        "vae_decoder": 2,
        "vae_encoder": 2,
        "vae_decoder_tile": 1,
        "vae_encoder_tile": 1,
    }
    cond = engines.graphs["dit_cond"]
    assert [profile.sizes["N"] for profile in cond.profiles] == [SizeRange(64, 64, 256), SizeRange(256, 1024, 4096)]
    assert [profile.sizes["T"] for profile in cond.profiles] == [SizeRange(1, 32, 2048), SizeRange(1, 128, 2048)]
    for side, profile in ((128, 0), (256, 0), (272, 1), (1024, 1)):
        tokens = (side // 16) ** 2
        assert choose_profile(cond, {"N": tokens, "T": 20, "L": tokens + 20}) == profile
    decoder = engines.graphs["vae_decoder"]
    assert 0 < decoder.profiles[0].activation_bytes < decoder.profiles[1].activation_bytes == decoder.activation_bytes


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
