"""Directories that appear whole or not at all."""

import errno
import fcntl
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from export import atomic_directory
from export.atomic_directory import check_apart, check_output, link_or_copy, rename, unfinished, why_not_linked


def test_overwrite_takes_bundles_and_empty_directories(tmp_path):
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty", overwrite=True)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "manifest.json").write_text("{}")
    check_output(tmp_path / "old", overwrite=True)


def test_a_bundle_with_a_foreign_file_is_not_replaced(tmp_path):
    bundle = tmp_path / "bundle"
    (bundle / "onnx").mkdir(parents=True)
    (bundle / "manifest.json").write_text('{"files": {"onnx/a.onnx": {}}}')
    (bundle / "onnx" / "a.onnx").touch()
    check_output(bundle, overwrite=True)
    (bundle / "onnx" / "picture.png").touch()
    with pytest.raises(FileExistsError, match=r"holds onnx/picture\.png, which is not the bundle's; move it away"):
        check_output(bundle, overwrite=True)


@pytest.mark.parametrize("manifest", ["", "[]", '{"files": 3}', "\xff"])
def test_a_bundle_whose_manifest_is_damaged_is_replaced(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(manifest, encoding="latin-1")
    (tmp_path / "other").touch()
    check_output(tmp_path, overwrite=True)


def test_failing_rename_brings_the_old_bundle_back(tmp_path, monkeypatch):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("old")
    real = os.rename

    def interrupted(source, target):
        if Path(source).name == ".bundle.partial":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    monkeypatch.setattr(atomic_directory, "_exchange", lambda first, second: False)
    with pytest.raises(KeyboardInterrupt), unfinished(tmp_path / "bundle") as partial:
        rename(partial, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "manifest.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_bundle_that_is_replaced_is_never_without_a_name(tmp_path, monkeypatch):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("old")
    seen = []
    remove = shutil.rmtree

    def look(folder, **options):
        seen.append((tmp_path / "bundle" / "manifest.json").read_text())
        remove(folder, **options)

    with unfinished(tmp_path / "bundle") as partial:
        (partial / "manifest.json").write_text("new")
        monkeypatch.setattr(shutil, "rmtree", look)
        # Two renames would leave a moment between them.
        monkeypatch.setattr(os, "rename", lambda *_: pytest.fail("the names are not exchanged at one stroke"))
        rename(partial, tmp_path / "bundle")
    assert seen[0] == "old" and set(seen[1:]) == {"new"}
    assert (tmp_path / "bundle" / "manifest.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_the_lock_of_a_program_that_was_killed_when_all_was_done_is_removed(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / ".bundle.lock").touch()
    with pytest.raises(FileExistsError, match="exists; choose another --output"):
        check_output(tmp_path / "bundle", overwrite=False)
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_the_lock_of_a_running_program_stays(tmp_path):
    with unfinished(tmp_path / "bundle"):
        (tmp_path / "bundle").mkdir()
        with pytest.raises(FileExistsError, match="exists; choose another --output"):
            check_output(tmp_path / "bundle", overwrite=False)
        with pytest.raises(FileExistsError, match="another build is writing"), unfinished(tmp_path / "bundle"):
            pass
        assert (tmp_path / ".bundle.lock").exists()


def test_a_lock_that_is_removed_before_it_is_held_is_made_again(tmp_path, monkeypatch):
    real, calls = fcntl.flock, []

    def late(handle, how):
        if not calls:
            (tmp_path / ".bundle.lock").unlink()  # another build has ended
        calls.append(how)
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with unfinished(tmp_path / "bundle"):
        assert len(calls) == 2 and (tmp_path / ".bundle.lock").exists()


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


def test_whether_a_file_can_be_linked_is_tried(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    assert why_not_linked(tmp_path / "file", tmp_path) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").stat().st_nlink == 1


def test_why_a_file_cannot_be_linked(other_disk):
    file, name = other_disk
    assert why_not_linked(file, name.parent) == "Invalid cross-device link" and list(name.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("output", "inside", "how"),
    [
        ("a/b", False, "is"),
        ("a/b", True, "is"),
        ("a/./c/../b", False, "is"),
        ("link", False, "is"),
        ("a", False, "lies around"),
        ("a", True, "lies around"),
        ("", True, "lies around"),
        ("a/b/c", False, "lies inside"),
        ("link/c/d", False, "lies inside"),
        ("a/b/c", True, None),
        ("a/bc", False, None),
        ("a/c", False, None),
        ("b", False, None),
    ],
)
def test_what_is_read_and_what_is_written(tmp_path, output, inside, how):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    if how is None:
        check_apart(tmp_path / output, tmp_path / "a" / "b", "it", inside)
        return
    with pytest.raises(
        ValueError, match=f"the output {tmp_path / output} {how} it {tmp_path / 'a' / 'b'}, which is only"
    ):
        check_apart(tmp_path / output, tmp_path / "a" / "b", "it", inside)


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
