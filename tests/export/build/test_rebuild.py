"""Building again over a bundle: what is damaged is repaired, what has changed is built, and nothing is lost."""

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from support import peers
from support.build_command import refused
from support.bundles import build_bundle

from export.build import running
from export.build.command import main
from export.build.finished import sound
from export.build.finished.ledger import LEDGER
from export.demo_model import DEMO_CHECKPOINT
from runtime import Pipeline
from runtime.bundle import verified
from runtime.bundle.integrity import check_files
from runtime.bundle.manifest import read_manifest

UNCHANGED = "unchanged, taken from an earlier build"
SPARE = 64 << 20


@pytest.fixture
def bundle(shared, tmp_path):
    """A copy of a bundle that this program has built, so that its keys are right."""
    made = shared("built-here", lambda folder: build_bundle(DEMO_CHECKPOINT, folder / "bundle", "fp32"))
    return Path(shutil.copytree(made / "bundle", tmp_path / "folder" / "bundle"))


def rebuild(bundle, *arguments):
    return main(["--output", str(bundle), "--overwrite", *map(str, arguments)])


def flip(file):
    """Another byte in the middle; the size stays."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def whole(bundle):
    """The bundle's files are what its manifest says, and nothing lies beside it."""
    check_files(bundle, read_manifest(bundle).files)
    return [path.name for path in bundle.parent.iterdir()] == [bundle.name]


@pytest.mark.parametrize(
    ("file", "kept"),
    [("onnx/weights/dit_cond.data", 6), ("onnx/vae_encoder_tile.onnx", 6), ("onnx/weights/vae_encoder.data", 5)],
)
def test_a_damaged_file_is_built_again(bundle, capsys, file, kept):
    """And with the weights of the whole autoencoder, the graph for tiles that points into them."""
    before = (bundle / file).read_bytes()
    flip(bundle / file)
    assert rebuild(bundle) == 0
    shown = capsys.readouterr().err
    assert f"warning: {bundle / file} is missing or altered; its stage is built again" in shown
    assert shown.count(UNCHANGED) == kept
    assert whole(bundle) and (bundle / file).read_bytes() == before


def test_a_rebuild_remembers_what_it_has_hashed(bundle, monkeypatch):
    """The second one reads no file of a stage, the third only what is damaged."""
    read, sha256 = [], sound.sha256
    monkeypatch.setattr(verified, "_SETTLED", 0)  # the files are younger than two seconds
    monkeypatch.setattr(sound, "sha256", lambda file: read.append(file.name) or sha256(file))

    def hashed():
        read.clear()
        assert rebuild(bundle, "--quiet") == 0
        return sorted(name for name in read if name.endswith((".onnx", ".data")))

    files = sorted(path.rpartition("/")[2] for path in read_manifest(bundle).files if path.startswith("onnx/"))
    assert hashed() == files and hashed() == []
    flip(bundle / "onnx/weights/vae_decoder.data")
    assert hashed() == ["vae_decoder.data"]
    assert whole(bundle)


@pytest.mark.parametrize("content", [b"{", b'{"ort/dit_cond": {"key": 1}}', b'{"ort/dit_cond": {}}', b"[" * 100_000])
def test_a_malformed_record_is_as_good_as_none(bundle, capsys, monkeypatch, content):
    """Of an unfinished build, and of the bundle; the work itself is left out here."""

    def stop(*_):
        raise KeyboardInterrupt

    partial = bundle.with_name(".bundle.partial")
    partial.mkdir()
    for folder in (bundle, partial):
        (folder / LEDGER).write_bytes(content)
    monkeypatch.setattr("export.build.command.run_jobs", stop)
    assert rebuild(bundle) == 130
    shown = capsys.readouterr().err
    assert f"warning: {partial / LEDGER} is damaged or of another version, so nothing is taken from it: " in shown
    assert f"warning: {bundle / LEDGER} is not what the manifest lists, so nothing is taken from the bundle" in shown
    assert "needs 0.09 GB of disk" in shown


def disk(monkeypatch, free):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, free))


def test_an_unchanged_bundle_needs_no_room_of_its_own(bundle, monkeypatch, capsys):
    disk(monkeypatch, SPARE + 1_000_000)
    assert rebuild(bundle) == 0
    assert "export.build: needs 0.07 GB of disk, 1.1 GB of memory and about 5 seconds" in capsys.readouterr().err


def test_room_is_wanted_for_what_is_damaged(bundle, monkeypatch, capsys):
    flip(bundle / "onnx/weights/dit_cond.data")
    disk(monkeypatch, SPARE + 6_000_000)
    assert rebuild(bundle) == 1
    assert "error: the bundle needs 0.07 GB, but " in capsys.readouterr().err
    disk(monkeypatch, SPARE + 7_000_000)
    assert rebuild(bundle) == 0 and whole(bundle)


def test_a_resumed_build_needs_room_for_the_rest(bundle, monkeypatch, capsys):
    """All but one stage are finished, and lie in the unfinished bundle alone."""
    partial = bundle.with_name(".bundle.partial")
    bundle.rename(partial)
    (partial / "manifest.json").unlink()
    ledger = json.loads((partial / LEDGER).read_text())
    del ledger["ort/dit_cond"]
    (partial / LEDGER).write_text(json.dumps(ledger))
    for path in ("onnx/dit_cond.onnx", "onnx/weights/dit_cond.data"):
        (partial / path).unlink()
    disk(monkeypatch, SPARE + 7_000_000)
    assert main(["--output", str(bundle)]) == 0
    assert capsys.readouterr().err.count(UNCHANGED) == 6 and whole(bundle)


def test_a_build_that_fails_over_another_ones_rest_harms_no_bundle(bundle, monkeypatch):
    """A killed build has given the bundle's files second names; one with other options must not write to them."""
    partial = bundle.with_name(".bundle.partial")
    shutil.copytree(bundle, partial, copy_function=os.link)
    (partial / "manifest.json").unlink()
    written = []

    def stop(job, checkpoint, folder, scan, quiet):
        if job.stage == "dit_uncond":
            raise KeyboardInterrupt
        written.append(job.stage)
        return made(job, checkpoint, folder, scan, quiet)

    made = running._made
    monkeypatch.setattr(running, "_made", stop)
    assert rebuild(bundle, "--precision", "fp8-weight-only", "--quiet") == 130
    assert written == ["text_encoder", "dit_cond"]
    check_files(bundle, read_manifest(bundle).files)


def test_latent_statistics_of_another_kind(tmp_path, bundle, capsys):
    """What the manifest says is what the graphs hold: only the autoencoder's are built again, and decode otherwise."""
    demo = peers.copy(DEMO_CHECKPOINT, tmp_path / "demo")
    (demo / "SHA256SUMS").unlink()
    # The demo's file holds the published constants, too.
    file = demo / "vae" / "diffusion_pytorch_model.safetensors"
    peers.rewrite(file, lambda tensors: tensors["bn.running_mean"].add_(1))
    assert rebuild(bundle, "--checkpoint", demo, "--quiet") == 0
    settings = {"preset": "V4_INSTANT_8", "seed": 1}
    with Pipeline.load(bundle) as pipeline:
        first = pipeline.generate("a red circle", **settings).images
    config = demo / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"latent_stats": "bn"}))
    capsys.readouterr()
    assert rebuild(bundle, "--checkpoint", demo) == 0
    shown = capsys.readouterr().err
    taken = {line.split()[0] for line in shown.splitlines() if UNCHANGED in line}
    assert taken == {"ort/text_encoder", "ort/dit_cond", "ort/dit_uncond"}
    assert read_manifest(bundle).latent_stats == "bn"
    with Pipeline.load(bundle) as pipeline:
        assert abs(pipeline.generate("a red circle", **settings).images.astype(int) - first).mean() > 1


def test_options_of_one_stage_build_that_stage(tmp_path, capsys):
    arguments = ["--precision", "fp8", "--no-compare", "--output", str(tmp_path / "bundle")]
    assert main([*arguments, "--quiet"]) == 0
    assert main([*arguments, "--overwrite", "--keep-base", "dit_cond.layers.0.*"]) == 0
    shown = capsys.readouterr().err
    assert shown.count(UNCHANGED) == 6 and "ort/dit_cond" not in shown
    assert read_manifest(tmp_path / "bundle").quantization.keep_base == ("dit_cond.layers.0.*",)


def test_the_checkpoint_is_never_inside_what_is_replaced(bundle, capsys):
    """Its removal would take the checkpoint along."""
    demo = peers.copy(DEMO_CHECKPOINT, bundle / "checkpoint")
    refused(capsys, bundle.parent, "which is not the bundle's; move it away", "--overwrite", "--checkpoint", demo)
    (bundle / "manifest.json").write_text("{}")  # which does not tell what is the bundle's
    message = f"the output {bundle} lies around the checkpoint {demo}, which is only read; choose another --output"
    refused(capsys, bundle.parent, message, "--overwrite", "--checkpoint", demo)
