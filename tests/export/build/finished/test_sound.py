"""Which files of finished stages are hashed, which are known, and which are refused."""

import hashlib
import os
import shutil

import pytest

from export.build.finished import sound
from export.build.finished.sound import Sound
from runtime.bundle import verified
from runtime.bundle.manifest import FileSpec

CONTENT = {"a": b"1" * 1000, "onnx/b": b"2" * 2000}
SPECS = {path: FileSpec(len(data), hashlib.sha256(data).hexdigest()) for path, data in CONTENT.items()}


@pytest.fixture
def hashed(monkeypatch, tmp_path):
    """Names of the files that are hashed, with a cache directory of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "_SETTLED", 0)  # the files are younger than two seconds
    names, sha256 = [], sound.sha256
    monkeypatch.setattr(sound, "sha256", lambda file: names.append(file.name) or sha256(file))
    return names


@pytest.fixture
def bundle(tmp_path, hashed):
    """A bundle that was built, and remembered."""
    folder = tmp_path / "bundle"
    for path, data in CONTENT.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    known = Sound(folder, quiet=True)
    for path, spec in SPECS.items():
        known.note(path, folder / path, spec.sha256)
    known.remember()
    return folder


def altered(bundle, folder=None):
    """What a build finds that replaces the bundle."""
    return Sound(bundle, quiet=True).altered(folder or bundle, SPECS)


def flip(file):
    """Another byte in the middle; the size stays."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_what_was_written_is_not_read_again(bundle, hashed, tmp_path):
    """Nor after second names have come and gone, which changes the inode's time but not the contents."""
    assert altered(bundle) == set() and hashed == []
    os.link(bundle / "a", tmp_path / "second")
    (tmp_path / "second").unlink()
    assert altered(bundle) == set() and hashed == []


def test_another_bundle_is_hashed(bundle, hashed, tmp_path):
    shutil.copytree(bundle, tmp_path / "copy")
    assert altered(tmp_path / "copy") == set() and sorted(hashed) == ["a", "b"]


def test_an_unfinished_bundle_is_hashed_each_time(bundle, hashed, tmp_path):
    """A power failure leaves files of the right size and time without their contents."""
    partial = tmp_path / ".bundle.partial"
    shutil.copytree(bundle, partial)
    assert altered(bundle, partial) == set() and sorted(hashed) == ["a", "b"]
    flip(partial / "a")
    assert altered(bundle, partial) == {"a"}


def test_what_is_altered_is_told_once_and_read_once(bundle, hashed, capsys):
    flip(bundle / "onnx/b")
    known = Sound(bundle, quiet=True)
    for _ in range(2):
        assert known.altered(bundle, SPECS) == {"onnx/b"}
    message = f"warning: {bundle / 'onnx/b'} is missing or altered; its stage is built again\n"
    assert capsys.readouterr().err == message and hashed == ["b"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.unlink(),
        lambda file: os.truncate(file, 500),
        lambda file: os.truncate(file, 1500),
        lambda file: (file.unlink(), file.mkdir()),
        lambda file: (file.rename(file.with_name("other")), file.symlink_to("other")),
        flip,
    ],
    ids=["missing", "shorter", "longer", "folder", "link", "flipped"],
)
def test_files_that_are_not_what_they_were(bundle, spoil):
    spoil(bundle / "a")
    assert altered(bundle) == {"a"}


def test_a_file_that_cannot_be_read(bundle, monkeypatch):
    """As on a disk that fails."""
    os.utime(bundle / "a", (1, 1))

    def fail(file):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(sound, "sha256", fail)
    assert altered(bundle) == {"a"}


def test_new_files_are_hashed_next_time(tmp_path, hashed, monkeypatch):
    """A change in the same tick of the file system's clock would not show."""
    monkeypatch.setattr(verified, "_SETTLED", 3600 * 10**9)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "a").write_bytes(CONTENT["a"])
    known = Sound(tmp_path / "bundle", quiet=True)
    known.note("a", tmp_path / "bundle" / "a", SPECS["a"].sha256)
    known.remember()
    assert Sound(tmp_path / "bundle", quiet=True).altered(tmp_path / "bundle", {"a": SPECS["a"]}) == set()
    assert hashed == ["a"]
