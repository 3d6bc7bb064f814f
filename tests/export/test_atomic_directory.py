"""Directories that appear whole or not at all."""

import errno
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from export.atomic_directory import check_output, link_or_copy, rename, unfinished


def test_overwrite_takes_bundles_and_empty_directories(tmp_path):
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty", overwrite=True)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "manifest.json").write_text("{}")
    check_output(tmp_path / "old", overwrite=True)


def test_failing_rename_brings_the_old_bundle_back(tmp_path, monkeypatch):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("old")
    real = os.rename

    def interrupted(source, target):
        if Path(source).name == ".bundle.partial":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), unfinished(tmp_path / "bundle") as partial:
        rename(partial, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "manifest.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_what_a_killed_build_left_is_removed(tmp_path):
    (tmp_path / ".bundle.partial" / "onnx").mkdir(parents=True)
    with unfinished(tmp_path / "bundle") as partial:
        assert list(partial.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_systems_without_locks_are_told_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    message = r"this command needs Linux \(or WSL 2 on Windows\)"
    with pytest.raises(RuntimeError, match=message), unfinished(tmp_path / "b"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def other_disk(tmp_path, monkeypatch):
    """A file, and a name for it on a file system where it cannot be linked."""

    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "file").write_bytes(b"whole" * 1000)
    (tmp_path / "bundle").mkdir()
    return tmp_path / "file", tmp_path / "bundle" / "name"


def test_a_copy_stands_in_for_a_link(other_disk):
    file, name = other_disk
    link_or_copy(file, name)
    assert name.read_bytes() == file.read_bytes() and [one.name for one in name.parent.iterdir()] == ["name"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_copy_that_fails_half_way_leaves_nothing(other_disk, monkeypatch, error):
    file, name = other_disk

    def fail(source, target):
        Path(target).write_bytes(Path(source).read_bytes()[:100])
        raise error

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(type(error)):
        link_or_copy(file, name)
    assert list(name.parent.iterdir()) == []


def test_half_a_copy_of_a_killed_build_is_not_taken_for_the_file(other_disk, monkeypatch):
    file, name = other_disk

    def die(source, target):
        Path(target).write_bytes(Path(source).read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)

    if (child := os.fork()) == 0:
        shutil.copyfile = die
        link_or_copy(file, name)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not name.exists()
    link_or_copy(file, name)
    assert name.read_bytes() == file.read_bytes() and [one.name for one in name.parent.iterdir()] == ["name"]
