"""Directories that appear whole or not at all."""

import os
import sys
from pathlib import Path

import pytest

from export.atomic_directory import check_output, rename, unfinished


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
