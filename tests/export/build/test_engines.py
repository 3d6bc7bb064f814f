"""Bundles with engines, made by the command."""

import json
import shutil
from pathlib import Path

import pytest
from support.engines.real import BOTH

from export.build.command import main
from runtime.bundle.integrity import check_files
from runtime.bundle.manifest import read_manifest


@pytest.fixture(scope="module")
def rtx_bundle(tmp_path_factory):
    """The demo's bundle with ONNX graphs and engines side by side, made by the command."""
    directory = tmp_path_factory.mktemp("rtx") / "bundle"
    arguments = ["--precision", "fp8", "--backend", "ort", "rtx", "--target", *BOTH, "--output", str(directory)]
    assert main([*arguments, "--quiet"]) == 0
    return directory


def test_bundle_holds_graphs_and_engines(rtx_bundle):
    manifest = read_manifest(rtx_bundle)
    check_files(rtx_bundle, manifest.files)
    (engines,) = manifest.engines.values()
    assert (engines.backend, engines.targets, engines.version) == ("rtx", BOTH, "1.7.1.116")
    assert engines.attention == manifest.quantization.attention == "base", "one bundle, one arithmetic"
    assert set(engines.graphs) == manifest.stages == set(manifest.graphs), "the graphs for tiles are among them"
    assert {spec.compute for spec in engines.graphs.values()} == {"bfloat16"}
    decoder = engines.graphs["vae_decoder"]
    (only,) = decoder.profiles  # the demo's default size is its smallest: there is no half of it
    assert only.sizes["grid_h"].minimum == manifest.sizes.minimum // 16 and only.activation_bytes > 0
    for stage in ("vae_decoder", "vae_encoder"):
        whole, tile = engines.graphs[stage], engines.graphs[f"{stage}_tile"]
        unit = 16 if stage == "vae_decoder" else 1
        (sizes,) = (profile.sizes for profile in tile.profiles)
        assert {(size.minimum * unit, size.maximum * unit) for size in sizes.values()} == {(128, 1152)}
        assert 0 < tile.activation_bytes < whole.activation_bytes


def test_engines_of_the_demo(rtx_bundle):
    report = json.loads((rtx_bundle / "report.json").read_text())["engines"]["rtx-sm89-sm120"]
    for stage in ("dit_cond", "dit_uncond"):
        assert report[stage]["copies"] == 0 and report[stage]["gate_products"] == report[stage]["qkv_products"] == 1
        assert set(report[stage]["attentions"]["types"]) == {"bf16"} and report[stage]["problems"] == []
        assert report[stage]["products"]["types"]["fp8"] == 6 * 4
    assert report["text_encoder"]["copies"] == 0
    assert report["text_encoder"]["attentions"]["types"] == {"bf16": 36}


def test_a_second_build_takes_everything_from_the_first(rtx_bundle, tmp_path, capsys):
    """Nothing is traced or built: the files are the old ones under second names."""
    copy = Path(shutil.copytree(rtx_bundle, tmp_path / "bundle"))
    before = {f: (copy / f).stat().st_ino for f in read_manifest(copy).files if f.endswith((".plan", ".data"))}
    arguments = ["--precision", "fp8", "--backend", "ort", "rtx", "--target", *BOTH, "--output", str(copy)]
    assert main([*arguments, "--overwrite"]) == 0
    assert capsys.readouterr().err.count("unchanged, taken from an earlier build") == 14
    assert {f: (copy / f).stat().st_ino for f in before} == before
    check_files(copy, read_manifest(copy).files)
