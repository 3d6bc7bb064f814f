"""Bundles with plans of ordinary TensorRT, on a stand-in for its builder."""

import json
from pathlib import Path

import pytest
from support.engines.fake_builder import FakeBuilder, build, entries, machine

from export.engine.timing_cache import TIMING_CACHE
from runtime.bundle.manifest import read_manifest

LISTING = (Path(__file__).parent / "data" / "tensorrt10.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_a_bundle(tmp_path, monkeypatch, capsys, version):
    """Both transformers have the shapes of one: the second finds its timings."""
    module = FakeBuilder(version, listing=LISTING)
    machine(monkeypatch, module)
    bundle = tmp_path / "bundle"
    assert build(bundle, "--profile", "128", "--profile", "512") == 0
    manifest = read_manifest(bundle)
    (engines,) = manifest.engines.values()
    assert (engines.backend, engines.targets, engines.version) == ("tensorrt", ("sm90",), version)
    assert [p.activation_bytes for p in engines.graphs["dit_cond"].profiles] == [1000, 2000]
    assert len(module.builds) == 7 and module.builds[:2] == ["dit_cond", "dit_uncond"]
    assert len(module.measured) == len(set(module.measured)), "nothing is measured twice"
    assert manifest.files[TIMING_CACHE].size > 0
    assert entries(bundle / TIMING_CACHE) == module.measured
    report = json.loads((bundle / "report.json").read_text())["engines"]["tensorrt-sm90"]["dit_cond"]
    assert report["kinds"]["Reformat"] == 1 and report["opaque"] == []
    assert "warning: the engine of dit_cond is not what was asked for: the attention" in capsys.readouterr().err
    # What the next build finds: with other engines (one profile), and a cache that was damaged.
    module.measured.clear()
    assert build(bundle, "--profile", "512", "--overwrite") == 0
    assert module.measured == [], "all of it was measured for the bundle that this one replaces"
    (bundle / TIMING_CACHE).write_bytes(b"\x00not a cache")
    assert build(bundle, "--profile", "256", "--overwrite") == 0
    error = capsys.readouterr().err
    assert error.count("timing.cache is missing or altered; nothing is taken from it") == 1
    assert len(entries(bundle / TIMING_CACHE)) == len(module.measured) > 0


STRANGE = "Layers:\nName: a, LayerType: NewThing, Inputs: ?\nwhat\n"


@pytest.mark.parametrize("listing", ["", "Layers:\n", STRANGE, '{"Layers": [{"LayerType": 1}]}'])
def test_no_list_of_kernels_fails_a_build(tmp_path, monkeypatch, capsys, listing):
    machine(monkeypatch, FakeBuilder(listing=listing))
    bundle = tmp_path / "bundle"
    assert build(bundle, "--profile", "128") == 0
    report = json.loads((bundle / "report.json").read_text())["engines"]["tensorrt-sm90"]["dit_cond"]
    error = capsys.readouterr().err
    if listing == STRANGE:
        assert report["opaque"] == ["a (NewThing)", "what (unknown)"] and report["kernels"] == 2
        assert (
            "warning: 2 entries of the builder's list of kernels of dit_cond are not understood, such as 'a'" in error
        )
    elif "{" in listing:
        assert report["opaque"] == [" (1)"]
    else:
        assert report["kernels"] == 0
        assert "warning: the builder listed no kernels of dit_cond; the report has none" in error


def test_a_profile_that_the_builder_refuses(tmp_path, monkeypatch, capsys):
    module = FakeBuilder()
    module.refuses_profiles = True
    machine(monkeypatch, module)
    assert build(tmp_path / "bundle") == 1
    assert "profile 0 of dit_cond is refused: {'latents': " in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
