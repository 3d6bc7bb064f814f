"""Bundles with adapters in them: what differs from the bundle without, what is recorded, and early errors."""

import shutil

import onnx
import pytest
import torch
from support import lora_files
from support.bundles import build_bundle
from support.lora_files import of_layers, peft, random_matrices, write

from calibration.command import main as calibrate
from calibration.static.ranges import RangesError, check_ranges, read_ranges
from export.build.command import main
from export.graph.precision import precision_of
from export.graph.recipe import Recipe
from export.graph.stage import StageOptions, export_stage
from export.verify.command import verify
from export.verify.summary import step_errors
from model.checkpoint.directory import open_checkpoint
from model.checkpoint.lora import with_loras
from runtime import Pipeline
from runtime.bundle.integrity import sha256
from runtime.bundle.manifest import LoraSpec, read_manifest
from runtime.errors import BundleError
from runtime.selftest.contents import SELF_TEST


@pytest.fixture(scope="module")
def lora(peer, tmp_path_factory):
    """An adapter of the first block's attention and of w2."""
    modules = ("layers.0.attention.qkv", "layers.0.feed_forward.w2")
    matrices = random_matrices(peer("head64", "diffusers")[0].transformer, modules)
    return write(tmp_path_factory.mktemp("lora") / "style.safetensors", peft(matrices, "diffusion_model."))


@pytest.fixture(scope="module")
def bundles(peer, lora, tmp_path_factory):
    """(bundle without the adapter, bundle with it) of a float8 checkpoint."""
    directory, folder = peer("head64", "original-fp8")[1], tmp_path_factory.mktemp("bundles")
    build_bundle(directory, folder / "plain", "fp8-weight-only")
    build_bundle(directory, folder / "folded", "fp8-weight-only", lora=(f"{lora}:0.5",))
    return folder / "plain", folder / "folded"


def test_only_the_touched_stage_differs(bundles):
    """All other files of the bundle are the same, byte for byte, but the build's record of keys and the self-test."""
    plain, folded = (read_manifest(bundle) for bundle in bundles)
    differing = {path for path in plain.files | folded.files if plain.files.get(path) != folded.files.get(path)}
    assert {path.split("/")[-1] for path in differing} == {"dit_cond.onnx", "dit_cond.data", "build.json", SELF_TEST}


def test_rebuild_makes_the_touched_stage_only(bundles, peer, lora, tmp_path, capsys):
    """Another scale over a bundle that has all other stages already; the same once more makes nothing."""
    shutil.copytree(bundles[1], tmp_path / "bundle")
    directory = peer("head64", "original-fp8")[1]
    for taken in (6, 7):
        build_bundle(
            directory, tmp_path / "bundle", "fp8-weight-only", lora=(f"{lora}:2",), overwrite=True, quiet=False
        )
        messages = capsys.readouterr().err
        assert messages.count("unchanged, taken from an earlier build") == taken
        assert any(line.split()[:2] == ["ort/dit_cond", "unchanged,"] for line in messages.splitlines()) == (taken == 7)
    assert read_manifest(tmp_path / "bundle").loras[0].scale == 2


def initializers(bundle, stage):
    model = onnx.load(bundle / read_manifest(bundle).graphs[stage].onnx)
    return {tensor.name: (tensor.data_type, tensor.raw_data) for tensor in model.graph.initializer}


def test_untouched_tensors_stay_bit_for_bit(bundles):
    """Codes and scales; the touched ones are codes again."""
    plain, folded = (initializers(bundle, "dit_cond") for bundle in bundles)
    touched = {f"layers.0.{module}.weight" for module in ("attention.qkv", "feed_forward.w2")}
    differing = {name for name in plain | folded if plain.get(name) != folded.get(name)}
    assert differing == touched | {f"{name}_scale" for name in touched}
    assert all(folded[name][0] == onnx.TensorProto.FLOAT8E4M3FN for name in touched)


def test_manifest_says_what_was_folded(bundles, lora):
    plain, folded = (read_manifest(bundle) for bundle in bundles)
    assert plain.loras == () and folded.loras == (LoraSpec("style.safetensors", sha256(lora), 0.5, "cond"),)
    assert plain.fingerprint != folded.fingerprint and plain.name == folded.name


def test_adapter_changes_the_picture(bundles):
    settings = {"preset": "V4_INSTANT_8", "width": 256, "height": 256, "seed": 3}
    plain, folded = (
        Pipeline.load(bundle).generate("a red circle", **settings).images.astype(int) for bundle in bundles
    )
    assert abs(plain - folded).mean() > 1


def test_report_needs_the_same_adapters(bundles, peer, lora, tmp_path):
    """A float8 file's own codes are exact, and float32 adds 1e-5 at most; the folded rows are rounded to e4m3 again, by
    up to 6 % each."""
    arguments = {
        "checkpoint": peer("head64", "original-fp8")[1],
        "texts": ["a red circle"],
        "preset": "V4_TURBO_12",
        "width": 256,
        "height": 256,
        "quiet": True,
    }
    with pytest.raises(BundleError, match=r"was not made from the checkpoint .*: its loras is \(LoraSpec.*'s \(\)"):
        verify([bundles[1]], output=tmp_path / "report", **arguments)
    report = verify([bundles[1]], output=tmp_path / "report", lora=(f"{lora}:0.5",), **arguments)
    errors = {stage: max(step_errors(report.entries[0], stage)) for stage in ("dit_cond", "dit_uncond")}
    assert errors["dit_uncond"] <= 1e-5 and 1e-4 < errors["dit_cond"] < 0.1


def test_folded_weights_of_kept_activations_stay_float(peer, lora, tmp_path):
    """Codes of a float8 checkpoint lose nothing and stay; folded weights would lose, so they do as a float one's."""
    checkpoint = with_loras(open_checkpoint(peer("head64", "original-fp8")[1]), [str(lora)])
    keep = ("dit_cond.layers.0.attention.qkv", "dit_cond.layers.0.attention.o")
    types = precision_of("fp8", None, "ort")
    options = StageOptions(types, Recipe(True, False, keep), {f"dit_cond.layers.0.{p}": 3.0 for p in lora_files.BLOCK})
    spec, _ = export_stage(checkpoint, "dit_cond", options, tmp_path, quiet=True)
    kinds = {t.name: t.data_type for t in onnx.load(tmp_path / spec.onnx).graph.initializer}
    assert kinds["layers.0.attention.qkv.weight"] == onnx.TensorProto.FLOAT
    assert (
        kinds["layers.0.attention.o.weight"]
        == kinds["layers.0.feed_forward.w2.weight"]
        == onnx.TensorProto.FLOAT8E4M3FN
    )


def test_ranges_are_measured_with_the_adapters(peer, lora, tmp_path, capsys):
    """Those of the bare checkpoint are refused, and the other way round."""
    directory = str(peer("head64", "original-fp8")[1])
    common = ["--measure", "ranges", "--checkpoint", directory, "--steps", "1", "--limit", "1", "--quiet"]
    common += ["--width", "256", "--height", "256"]
    assert calibrate([*common, "--output", str(tmp_path / "plain.json")]) == 0
    assert calibrate([*common, "--output", str(tmp_path / "folded.json"), "--lora", str(lora)]) == 0
    plain, folded = (read_ranges(tmp_path / f"{name}.json") for name in ("plain", "folded"))
    bare = open_checkpoint(peer("head64", "original-fp8")[1])
    check_ranges(plain, bare)
    check_ranges(folded, with_loras(bare, [str(lora)]))
    with pytest.raises(RangesError, match=r"measured on checkpoint without LoRAs, .* calibrate with the same"):
        check_ranges(plain, with_loras(bare, [str(lora)]))
    with pytest.raises(RangesError, match="which is not the model checkpoint"):
        check_ranges(folded, with_loras(bare, [f"{lora}:0.5"]))
    with pytest.raises(RangesError, match="which is not the model checkpoint"):
        check_ranges(folded, bare)
    moved = [name for name in plain.tensors if plain.tensors[name].amax != folded.tensors[name].amax]
    assert "dit_cond.layers.0.attention.q" in moved
    assert (
        main(
            [
                "--checkpoint",
                directory,
                "--output",
                str(tmp_path / "b"),
                "--precision",
                "fp8",
                "--activations",
                "static",
                "--quiet",
                "--lora",
                str(lora),
            ]
        )
        == 1
    )
    assert f"--checkpoint {directory} --output ranges.json with the same --lora" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lora", "{lora}:much"], "has the scale 'much', wanted a number"),
        (["--lora", "{lora}", "{lora}:2"], "is given twice"),
        (["--lora", "{lora}", "--lora", "none.safetensors"], "there is no LoRA file none.safetensors"),
        (["--lora", "{other}"], "other.safetensors is not a LoRA for this model: none of its 2 tensors"),
        (
            ["--lora", "{wide}"],
            "wide.safetensors does not fit this model: layers.0.",
        ),
        (["--lora", "{broken}"], "broken.safetensors is not a whole safetensors file"),
        (["--lora-target", "both"], "--lora-target both goes with --lora"),
    ],
)
def test_errors_come_before_any_work(peer, lora, tmp_path, capsys, monkeypatch, arguments, message):
    files = {name: tmp_path / f"{name}.safetensors" for name in ("other", "wide", "broken")}
    write(files["other"], peft({"blocks.0.img_attn.qkv": (torch.ones(4, 96), torch.ones(288, 4))}, "diffusion_model."))
    write(files["wide"], peft(random_matrices(peer("head32", "diffusers")[0].transformer, of_layers(0)), ""))
    files["broken"].write_bytes(lora.read_bytes()[:200])
    monkeypatch.setattr("export.build.command.describe", lambda _: pytest.fail("the build went on"))
    before = sorted(tmp_path.rglob("*"))
    given = [argument.format(lora=lora, **files) for argument in arguments]
    checkpoint = str(peer("head64", "original-fp8")[1])
    assert main(["--checkpoint", checkpoint, "--output", str(tmp_path / "bundle"), *given]) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("export.build: error: ") and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
