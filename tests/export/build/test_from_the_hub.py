"""Builds from a Hub id, with the demo model in a cache of huggingface_hub's layout and no network."""

import pytest
from huggingface_hub import constants, utils
from support.hub_cache import cached

from calibration.command import main as calibrate
from export.build.command import build, main
from export.build.options import BuildOptions
from export.demo_model import DEMO_CHECKPOINT
from export.sensitivity import main as measure_sensitivity
from export.verify.command import main as verify
from model.checkpoint.hub import FILES
from runtime.bundle.integrity import check_files
from runtime.bundle.manifest import read_manifest

ID = "someone/small-model"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """The demo's snapshot in the only cache, with no more than what would have been downloaded."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    files = {
        file.relative_to(DEMO_CHECKPOINT).as_posix(): file for file in DEMO_CHECKPOINT.rglob("*") if file.is_file()
    }
    names = list(utils.filter_repo_objects(files, allow_patterns=list(FILES)))
    assert len(names) < len(files), "SHA256SUMS, at least"
    return cached(tmp_path / "hub", ID, {name: files[name].read_bytes() for name in names})


def test_bundle_shares_the_files_of_the_cache(snapshot, tmp_path):
    """They are symbolic links to blobs; the bundle has the blobs themselves under second names, and no link."""
    bundle = tmp_path / "bundle"
    build(BuildOptions(checkpoint=ID, output=bundle, precision="fp8-weight-only", weights="link", quiet=True))
    manifest = read_manifest(bundle)
    assert manifest.name == ID
    check_files(bundle, manifest.files, hashes=True)
    blob = (snapshot / WEIGHTS).resolve()
    shared = [path for path in manifest.files if (bundle / path).samefile(blob)]
    assert len(shared) == 1 and manifest.files[shared[0]].sha256 == blob.name
    assert not [file for file in bundle.rglob("*") if file.is_symlink()]


def test_damaged_blob_is_found(snapshot, tmp_path, capsys):
    """Its name is its checksum."""
    blob = (snapshot / WEIGHTS).resolve()
    data = bytearray(blob.read_bytes())
    data[-1000] ^= 1
    blob.write_bytes(data)
    assert main(["--checkpoint", ID, "--output", str(tmp_path / "bundle"), "--quiet"]) == 1
    assert f"{snapshot / WEIGHTS} is damaged: SHA-256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (main, ()),
        (calibrate, ()),
        (measure_sensitivity, ()),
        (verify, ("{bundle}",)),
    ],
    ids=["export.build", "calibration", "export.sensitivity", "export.verify"],
)
def test_every_command_takes_an_id(snapshot, demo_bundle, tmp_path, capsys, command, arguments):
    """One that is not there is named, and so is a revision that is not."""
    given = [argument.format(bundle=demo_bundle) for argument in arguments]
    for wrong in (["--checkpoint", "someone/other"], ["--checkpoint", ID, "--revision", "v2"]):
        assert command([*given, *wrong, "--output", str(tmp_path / "out"), "--quiet"]) == 1
        error = capsys.readouterr().err
        assert f"there is no directory {wrong[1]}, nor all of that model in the cache" in error
        assert "HF_HUB_OFFLINE forbids a download" in error and error.count("\n") == 1


def test_advice_names_the_id(snapshot, tmp_path, capsys):
    """Not the snapshot's directory, which nobody types."""
    options = ["--precision", "fp8", "--activations", "static", "--output", str(tmp_path / "bundle"), "--quiet"]
    assert main(["--checkpoint", ID, *options]) == 1
    command = f"python -m calibration --measure ranges --checkpoint {ID} --output ranges.json"
    assert command in capsys.readouterr().err
