"""An engine that is built again with its inner values as outputs: as far as that goes without a GPU."""

import json
from dataclasses import replace

import pytest
from support.tampering import Tampered, set_at

from export.debug import engine_side
from export.debug.command import main
from export.debug.engine_side import EngineSide
from export.debug.onnx_side import OnnxSide
from export.demo_model import DEMO_CHECKPOINT
from model.checkpoint.directory import open_checkpoint
from runtime.bundle.graph_specs import EngineSet, EngineSpec, Profile, SizeRange
from runtime.bundle.manifest import LoraSpec, QuantizationSpec, read_manifest

STAGE = "dit_uncond"
SIZES = {"B": SizeRange(1, 1, 1), "N": SizeRange(64, 64, 256)}
SET = "rtx-sm89"


def with_engine(manifest):
    """The manifest with an engine in bfloat16, whose plan nobody reads."""
    graph = manifest.graphs[STAGE]
    spec = EngineSpec(graph.onnx, "bfloat16", graph.inputs, graph.outputs, (Profile(SIZES, 0),))
    engines = EngineSet("rtx", ("sm89",), "1.7.1.116", "base", {STAGE: spec})
    return replace(manifest, precision="bf16", engines={SET: engines})


@pytest.fixture
def bundle(demo_bundle, tmp_path):
    """The demo's float32 bundle, said to have an engine too."""
    copy = Tampered(demo_bundle, tmp_path / "bundle")
    (copy.directory / "manifest.json").write_text(with_engine(read_manifest(demo_bundle)).to_json(), encoding="utf-8")
    return copy


def side(bundle, **changes):
    manifest = replace(read_manifest(bundle), **changes)
    return EngineSide(manifest, manifest.engines[SET], STAGE, open_checkpoint(DEMO_CHECKPOINT))


def test_the_forms_have_values_in_common(bundle):
    """Residuals, norms and products of every block: a fault is found to within a part of one."""
    manifest = read_manifest(bundle.directory)
    ours, theirs = side(bundle.directory), OnnxSide(bundle.directory, manifest.graphs[STAGE])
    common = [ours.layers[name] for name in ours.layers if name in theirs.layers]
    read = {weight for layer in common for weight in layer.weights}
    for block in range(6):
        assert {f"layers.{block}.attention.qkv.weight", f"layers.{block}.feed_forward.w2.weight"} <= read
    assert list(ours.layers)[-1] == list(theirs.layers)[-1] == "velocity"


def test_inner_values_are_outputs_of_the_plan(bundle):
    """Built by TensorRT-RTX; without a driver nothing can be read from it but its size and the absence of an error."""
    ours = side(bundle.directory)
    inner = next(name for name, layer in ours.layers.items() if "layers.2.attention.qkv.weight" in layer.weights)
    assert len(ours.plan([inner, "velocity"])) > 100_000


def test_against_onnx_runtime(bundle, demo_bundle, monkeypatch, capsys):
    """With a stand-in for the engine that computes what another bundle does, in which a weight is another."""
    weight = "layers.1.attention.qkv.weight"
    bundle.initializer(STAGE, weight, set_at((3, 4), 9.0))
    computes = OnnxSide(demo_bundle, read_manifest(demo_bundle).graphs[STAGE])
    monkeypatch.setattr(engine_side, "_layers", lambda model: computes.layers)
    monkeypatch.setattr(EngineSide, "runner", lambda self, names: computes.runner(names))
    options = ("--graph", STAGE, "--against", "ort", "--checkpoint", str(DEMO_CHECKPOINT), "--json")
    assert main([str(bundle.directory), *options, "--tolerance", "1e-5"]) == 1
    text = capsys.readouterr()
    assert weight in json.loads(text.out)["first"]["weights"] and weight in text.err
    assert main([str(bundle.directory), *options, "--tolerance", "1e3"]) == 0


def test_without_a_driver(bundle, capsys):
    """The engine is built, and cannot be loaded: one line that says so."""
    options = ("--graph", STAGE, "--against", "ort", "--checkpoint", str(DEMO_CHECKPOINT), "--tolerance", "1e-2")
    assert main([str(bundle.directory), *options]) == 1
    text = capsys.readouterr()
    assert len(text.err.splitlines()) == 1 and "Traceback" not in text.err


def test_refusals(bundle, tmp_path, capsys):
    options = ("--graph", STAGE, "--against", "ort")
    assert main([str(bundle.directory), *options]) == 1
    assert "--against ort builds the engine again, and needs --checkpoint" in capsys.readouterr().err
    assert main([str(bundle.directory), *options, "--engines", "rtx-sm75"]) == 1
    assert f"--engines is 'rtx-sm75', the bundle has {SET} with {STAGE}" in capsys.readouterr().err
    bundle.manifest(lambda data: data.update(fingerprint="0" * 64))
    assert main([str(bundle.directory), *options, "--checkpoint", str(DEMO_CHECKPOINT)]) == 1
    assert "is not what the bundle was built from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"precision": "int8", "quantization": QuantizationSpec("token", "base", (), 0.5)}, "measured activations"),
        ({"precision": "fp8", "quantization": QuantizationSpec("max", "base", ())}, "measured activations"),
        ({"loras": (LoraSpec("a.safetensors", "0" * 64, 1.0, "both"),)}, "adapters"),
    ],
)
def test_what_a_bundle_does_not_keep(bundle, changes, what):
    with pytest.raises(ValueError, match=f"were built with {what}, which a bundle does not keep"):
        side(bundle.directory, **changes)
