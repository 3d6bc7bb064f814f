"""What the comparison of bundles refuses."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from support import peers
from support.verified import QUICK

from export.demo_model import DEMO_CHECKPOINT
from export.verify.command import main
from export.verify.report_files import JSON
from runtime.backend.ort import OrtGraph


def refused(capsys, tmp_path, message, *arguments):
    """The command fails with `message` in one line and leaves `tmp_path` as it was."""
    before = sorted(tmp_path.rglob("*"))
    assert main(["--output", str(tmp_path / "report"), *QUICK, *map(str, arguments)]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("export.verify: error: ") and message in err and err.count("\n") == 1 and out == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", " "], "prompt 1 of 1: the prompt is empty"),
        (["--prompt", "fine", ""], "prompt 2 of 2: the prompt is empty"),
        (["--prompt", "\ud800"], "not valid UTF-8 at character 0"),
        (["--prompt", "a " * 3000], "wanted at most 2048"),
        (["--prompts", "0"], "--prompts is 0, wanted 1 to "),
        (["--prompts", "100000"], "--prompts is 100000, wanted 1 to "),
        (["--preset", "V5"], "preset is 'V5', wanted one of V4_QUALITY_48"),
        (["--preset", "V4_FAST_20"], "preset V4_FAST_20 has no guidance"),
        (["--seed", "-1"], "seed is -1"),
        (["--width", "250"], "width is 250"),
        (["--height", "300"], "height is 300, wanted a multiple of 16"),
        (["--checkpoint", "nowhere"], "there is no checkpoint directory nowhere"),
    ],
)
def test_bad_options(demo_bundle, tmp_path, capsys, arguments, message):
    refused(capsys, tmp_path, message, demo_bundle, *arguments)


def test_prompts_and_prompt_exclude_each_other(demo_bundle, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(demo_bundle), "--output", str(tmp_path / "r"), *QUICK, "--prompts", "1", "--prompt", "a"])
    assert stopped.value.code == 2 and "not allowed with argument" in capsys.readouterr().err


def test_no_report_into_a_bundle(demo_bundle, tmp_path, capsys):
    bundle = shutil.copytree(demo_bundle, tmp_path / "bundle")
    message = "lies inside the bundle"
    refused(capsys, tmp_path, message, demo_bundle, bundle, "--output", bundle / "report")
    refused(capsys, tmp_path, message, bundle, "--output", bundle / "onnx" / "report", "--overwrite")


def test_bundles_that_are_not_there(demo_bundle, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    refused(capsys, tmp_path, "there is no bundle directory", demo_bundle, tmp_path / "none")
    refused(capsys, tmp_path, "holds no manifest.json", tmp_path / "empty")
    refused(capsys, tmp_path, "is given twice", demo_bundle, demo_bundle / "." / "onnx" / "..")


def test_output(demo_bundle, tmp_path, capsys):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "thesis.txt").write_text("mine")
    refused(capsys, tmp_path, "exists; choose another --output or add --overwrite", demo_bundle)
    refused(capsys, tmp_path, "is not a report; it is not overwritten", demo_bundle, "--overwrite")
    refused(capsys, tmp_path, "for the report does not exist", demo_bundle, "--output", tmp_path / "no" / "report")


def test_bundle_of_another_model(demo_bundle, peer, tmp_path, capsys):
    checkpoint = peer("head32", "diffusers")[1]
    message = f"the bundle {demo_bundle} was not made from the checkpoint {checkpoint}: its"
    refused(capsys, tmp_path, message, demo_bundle, "--checkpoint", checkpoint)


def test_float8_bundle_of_another_model_of_the_same_sizes(fp8_bundle, tmp_path, capsys):
    """Only the fingerprint can tell."""
    checkpoint = peers.copy(DEMO_CHECKPOINT, tmp_path / "demo")
    file = checkpoint / "transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["embed_image_indicator.weight"] += 1
    save_file(tensors, file)
    refused(capsys, tmp_path, "its fingerprint is ", fp8_bundle, "--checkpoint", checkpoint)


def spoil(manifest, *path, value=None):
    """Set, or without a value remove, what is at `path` in a manifest."""
    for key in path[:-1]:
        manifest = manifest[key]
    if value is None:
        del manifest[path[-1]]
    else:
        manifest[path[-1]] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: spoil(m, "rope", "theta", value=1e5), "its rope is RopeSpec(head_dim=64, theta=100000.0"),
        (lambda m: spoil(m, "sizes", "multiple", value=32), "its sizes is SizeSpec(multiple=32"),
        (
            lambda m: spoil(m, "latent_channels", value=64) or m.update(preview=None),
            "its latent_channels is 64, the checkpoint's 128",
        ),
        (lambda m: spoil(m, "latent_stats", value="bn" if m["latent_stats"] != "bn" else "constants"), "latent_stats"),
        (lambda m: spoil(m, "prompt", "prefix", value="x"), "its prompt is PromptSpec("),
        (lambda m: spoil(m, "files", "tokenizer.json", "sha256", value="0" * 64), "its tokenizer is 000"),
        (lambda m: spoil(m, "graphs", "dit_uncond"), "has no graph dit_uncond, which the comparison needs"),
        (lambda m: spoil(m, "graphs", "dit_cond", "outputs", 0, "shape", 2, value=64), "its graph dit_cond is "),
        (lambda m: spoil(m, "rope"), "manifest.json: the manifest lacks the key 'rope'"),
    ],
    ids=["rope", "sizes", "channels", "stats", "prompt", "tokenizer", "no graph", "graph", "damaged"],
)
def test_manifest_of_another_model(demo_bundle, tmp_path, capsys, change, message):
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    manifest = json.loads((demo_bundle / "manifest.json").read_text(encoding="utf-8"))
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    refused(capsys, tmp_path, message, bundle)


def test_damaged_bundle_is_found_before_the_reference_runs(demo_bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("export.verify.command.sample", lambda *arguments: pytest.fail("the reference ran"))
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    file = bundle / "onnx/weights/dit_cond.data"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    refused(capsys, tmp_path, "dit_cond.data", demo_bundle, bundle)


def test_bundle_that_gives_nan_and_the_report_before_it(verified, demo_bundle, tmp_path, capsys, monkeypatch):
    report = Path(shutil.copytree(verified[1], tmp_path / "report"))
    before = (report / JSON).read_bytes()
    call = OrtGraph.__call__
    monkeypatch.setattr(OrtGraph, "__call__", lambda self, **feeds: call(self, **feeds) * np.float32(math.nan))
    refused(
        capsys,
        tmp_path,
        f"the bundle {demo_bundle}: text_encoder gave NaN or infinite values",
        demo_bundle,
        "--overwrite",
        "--prompt",
        "a",
    )
    assert (report / JSON).read_bytes() == before
