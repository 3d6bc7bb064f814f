"""The first layer that is off is found by its name: one bundle against another, both in ONNX Runtime."""

import json
from dataclasses import replace

import numpy as np
import pytest
from support.tampering import Tampered, scaled_at, set_at

from export.debug import command
from export.debug.command import main
from runtime.selftest.contents import SELF_TEST


@pytest.fixture
def fp32(demo_bundle, tmp_path):
    return Tampered(demo_bundle, tmp_path / "fp32")


@pytest.fixture
def fp8(demo_fp8_bundle, tmp_path):
    return Tampered(demo_fp8_bundle, tmp_path / "fp8")


def found(capsys, bundle, graph, other, *options):
    """Exit code and report."""
    code = main([str(bundle), "--graph", graph, "--against", str(other), "--json", *options])
    text = capsys.readouterr()
    assert ("error: " in text.err) == (code == 1)
    return code, json.loads(text.out), text.err


@pytest.mark.parametrize("graph", ["text_encoder", "dit_cond", "vae_decoder", "vae_encoder_tile"])
def test_a_bundle_is_itself(demo_bundle, capsys, graph):
    code, report, _ = found(capsys, demo_bundle, graph, demo_bundle)
    assert code == 0 and report["passed"] and report["first"] is None
    assert len(report["layers"]) > 50 and not any(layer["off"] for layer in report["layers"])


@pytest.mark.parametrize(
    ("graph", "weight"),
    [
        ("text_encoder", "encoder.layers.0.mlp.up_proj.weight"),
        ("dit_cond", "layers.2.feed_forward.w1.weight"),
        ("dit_uncond", "layers.0.attention.qkv.weight"),
        ("vae_decoder", "decoder.mid_block.attentions.0.to_k.weight"),
    ],
)
def test_an_altered_weight(fp32, demo_bundle, capsys, graph, weight):
    fp32.initializer(graph, weight, set_at((5, 7), 1.0))
    code, report, message = found(capsys, fp32.directory, graph, demo_bundle)
    assert code == 1 and not report["passed"] and weight in message
    assert weight in report["first"]["weights"] and report["first"] == report["layers"][-1]
    assert not any(layer["off"] for layer in report["layers"][:-1])


def test_an_altered_scale(fp8, demo_fp8_bundle, capsys):
    """Of one row of 128, against the bundle as it was."""
    scale = "layers.3.feed_forward.w2.weight_scale"
    fp8.initializer("dit_cond", scale, scaled_at(7, 1.5))
    code, report, message = found(capsys, fp8.directory, "dit_cond", demo_fp8_bundle)
    assert code == 1 and scale in report["first"]["weights"] and scale in message


@pytest.mark.parametrize("graph", ["text_encoder", "dit_cond", "dit_uncond", "vae_encoder"])
def test_float8_is_float32_within_its_tolerance(demo_fp8_bundle, demo_bundle, capsys, graph):
    code, report, _ = found(capsys, demo_fp8_bundle, graph, demo_bundle)
    assert code == 0 and report["layers"]


def test_an_altered_scale_in_float8_against_float32(fp8, demo_bundle, capsys):
    """Of all rows: what 8 bits cost hides less than that."""
    scale = "layers.3.feed_forward.w2.weight_scale"
    fp8.initializer("dit_cond", scale, lambda scales: scales * 4)
    code, report, _ = found(capsys, fp8.directory, "dit_cond", demo_bundle)
    assert code == 1 and scale in report["first"]["weights"]


def test_a_layer_that_gives_nan(fp32, demo_bundle, capsys):
    fp32.initializer("dit_cond", "layers.1.attention.o.weight", set_at((0, 0), np.nan))
    code, report, message = found(capsys, fp32.directory, "dit_cond", demo_bundle)
    assert code == 1 and report["first"]["error"] is None and "layers.1.attention.o.weight" in message


def test_own_tolerance(fp32, demo_bundle, capsys):
    fp32.initializer("dit_cond", "layers.2.feed_forward.w1.weight", set_at((5, 7), 1.0))
    assert found(capsys, fp32.directory, "dit_cond", demo_bundle, "--tolerance", "10")[0] == 0


def test_text(fp32, demo_bundle, capsys):
    fp32.initializer("dit_cond", "layers.2.feed_forward.w1.weight", set_at((5, 7), 1.0))
    assert main([str(fp32.directory), "--graph", "dit_cond", "--against", str(demo_bundle)]) == 1
    text = capsys.readouterr()
    lines = text.out.splitlines()
    assert lines[0].startswith("dit_cond: ") and "layers before these are ok" in lines[1]
    assert lines[-1].endswith("OFF") and all(line.endswith("ok") for line in lines[3:-1])
    assert "the first layer that is off is " in text.err and "Traceback" not in text.err


def refused(capsys, bundle, *options):
    assert main([str(bundle), *map(str, options)]) == 1
    text = capsys.readouterr()
    assert text.out == "" and len(text.err.splitlines()) == 1
    return text.err


def test_refusals(fp32, demo_bundle, tmp_path, capsys, monkeypatch):
    graph = ("--graph", "dit_cond")
    assert "--graph is 'unet', the bundle has dit_cond" in refused(
        capsys, demo_bundle, "--graph", "unet", "--against", demo_bundle
    )
    assert "--engines is not given, the bundle has none with dit_cond" in refused(
        capsys, demo_bundle, *graph, "--against", "ort"
    )
    assert "--tolerance is -1.0, wanted a positive number" in refused(
        capsys, demo_bundle, *graph, "--against", demo_bundle, "--tolerance", "-1"
    )
    assert "go with --against ort" in refused(
        capsys, demo_bundle, *graph, "--against", demo_bundle, "--checkpoint", tmp_path
    )
    assert str(tmp_path / "none") in refused(capsys, demo_bundle, *graph, "--against", tmp_path / "none")
    fp32.manifest(lambda data: data.update(fingerprint="0" * 64))
    assert "is of another model" in refused(capsys, fp32.directory, *graph, "--against", demo_bundle)
    (fp32.directory / SELF_TEST).unlink()
    assert f"has no {SELF_TEST}" in refused(capsys, fp32.directory, *graph, "--against", demo_bundle)
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert "install the extra 'debug'" in refused(capsys, demo_bundle, *graph, "--against", demo_bundle)


def test_damaged_graph(fp32, demo_bundle, capsys):
    fp32.write("onnx/dit_cond.onnx", b"\xff" * 100)
    message = refused(capsys, fp32.directory, "--graph", "dit_cond", "--against", demo_bundle)
    assert "onnx/dit_cond.onnx is no ONNX graph" in message


def test_graph_without_inputs(fp32, demo_bundle, capsys):
    fp32.self_test(lambda test: replace(test, calls={**test.calls, "dit_cond": ()}))
    message = refused(capsys, fp32.directory, "--graph", "dit_cond", "--against", demo_bundle)
    assert "has no inputs for dit_cond" in message
