"""Engines with several optimization profiles, really built by TensorRT-RTX."""

import re

from support.engines.real import SIZES, SMALL_SIZES, engine, stage_options

from export.build.command import main
from export.demo_model import DEMO_CHECKPOINT
from export.engine.builder import build_plan
from export.engine.files import kernels_from_json
from export.engine.sizes import shapes, used
from export.graph.records import graph_record
from export.graph.stage import export_stage
from model.checkpoint.directory import open_checkpoint
from runtime.bundle.graph_specs import SizeRange
from runtime.bundle.manifest import read_manifest
from runtime.tensorrt.profiles import choose_profile

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
