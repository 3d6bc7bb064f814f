"""Which files are hashed before a bundle is loaded, and which are known already."""

import json
import os
import shutil

import pytest

from runtime import BundleError, Pipeline, RequestError
from runtime.bundle import integrity, verified
from runtime.bundle.manifest import read_manifest


@pytest.fixture
def hashed(monkeypatch, tmp_path):
    """Names of the files that are hashed, with a cache directory of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "_SETTLED", 0)  # the copy is younger than two seconds
    names, sha256 = [], integrity.sha256
    monkeypatch.setattr(integrity, "sha256", lambda file: names.append(file.name) or sha256(file))
    return names


@pytest.fixture
def bundle(demo_bundle, tmp_path):
    return shutil.copytree(demo_bundle, tmp_path / "bundle")


def load(bundle, hashed, **options):
    """Names of the files that loading hashes."""
    hashed.clear()
    Pipeline.load(bundle, **options).close()
    return sorted(hashed)


def flip(file):
    """Another byte in the middle; the size stays."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_what_is_known_is_not_hashed_again(bundle, hashed):
    first = load(bundle, hashed)
    assert "dit_cond.data" in first and "tokenizer.json" in first and len(first) == len(set(first))
    assert load(bundle, hashed) == []
    everything = sorted(path.rpartition("/")[2] for path in read_manifest(bundle).files)
    assert load(bundle, hashed, verify="full") == everything
    assert load(bundle, hashed, verify="off") == []


def test_a_file_that_changes_is_hashed_again(bundle, hashed):
    load(bundle, hashed)
    weights = bundle / "onnx/weights/dit_cond.data"
    times = weights.stat()
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert load(bundle, hashed) == ["dit_cond.data"] and load(bundle, hashed) == []
    flip(weights)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))  # a copy that keeps times shows in the time of change
    for _ in range(2):  # a file that is refused is not remembered
        with pytest.raises(BundleError, match=r"dit_cond\.data is altered"):
            load(bundle, hashed)
    flip(weights)
    assert load(bundle, hashed) == ["dit_cond.data"]


def test_another_hash_in_the_manifest_is_compared(bundle, hashed):
    load(bundle, hashed)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["onnx/weights/dit_cond.data"]["sha256"] = "0" * 64
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"dit_cond\.data is altered"):
        load(bundle, hashed)


def test_files_that_have_just_changed_are_not_remembered(bundle, hashed, monkeypatch):
    """A second change in the same tick of the file system's clock would not show."""
    monkeypatch.setattr(verified, "_SETTLED", 3600 * 10**9)
    assert load(bundle, hashed) == load(bundle, hashed) != []


def test_what_is_not_used_is_not_hashed(bundle, hashed):
    flip(bundle / "onnx/weights/dit_uncond.data")
    names = load(bundle, hashed, unconditional=False, vae_graphs=["vae_decoder"])
    stages = ("text_encoder", "dit_cond", "vae_decoder")
    assert names == sorted(["tokenizer.json", *(f"{stage}{end}" for stage in stages for end in (".onnx", ".data"))])
    with pytest.raises(BundleError, match=r"dit_uncond\.data is altered"):
        load(bundle, hashed)
    with pytest.raises(BundleError, match=r"dit_uncond\.data is altered"):
        load(bundle, hashed, verify="full", unconditional=False)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"onnx/dit_cond.onnx": 1}'])
def test_a_damaged_memory_is_none(bundle, hashed, tmp_path, content):
    first = load(bundle, hashed)
    (memory,) = (tmp_path / "cache/ideogram4-trt/verified").iterdir()
    memory.write_bytes(content)
    assert load(bundle, hashed) == first and load(bundle, hashed) == []


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(bundle, hashed, tmp_path):
    (tmp_path / "cache").write_bytes(b"a file")
    assert load(bundle, hashed) == load(bundle, hashed) != []


def test_bundles_that_are_long_gone_are_forgotten(bundle, hashed, tmp_path, monkeypatch):
    monkeypatch.setattr(verified, "MOST_BUNDLES", 2)
    folder = tmp_path / "cache/ideogram4-trt/verified"
    folder.mkdir(parents=True)
    for age in range(3):
        (folder / f"{age}.json").write_text("{}")
        os.utime(folder / f"{age}.json", (10 - age, 10 - age))
    load(bundle, hashed)
    assert len(names := sorted(file.name for file in folder.iterdir())) == 2 and "0.json" in names


def test_other_values_are_refused(bundle):
    with pytest.raises(RequestError, match="verify is 'maybe', wanted one of auto, full, off"):
        Pipeline.load(bundle, verify="maybe")
