"""Files that appear whole or not at all, whoever else writes there."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from runtime import file_locks
from runtime.atomic_files import check_outputs, remove_leftovers, remove_leftovers_in, write_files, write_whole


def names(folder):
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture(params=["hard links", "none"])
def links(request, monkeypatch):
    """File systems with hard links, and without."""
    if request.param == "none":

        def refuse(*_):
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("links")
def test_of_several_that_write_one_file_one_succeeds_and_nothing_is_lost(tmp_path):
    file, count = tmp_path / "a.png", 8
    barrier = Barrier(count)

    def write(number):
        check_outputs([file], overwrite=False)
        barrier.wait()
        try:
            write_files([file], [bytes([number])], overwrite=False)
        except FileExistsError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(count) as pool:
        told = list(pool.map(write, range(count)))
    winner = file.read_bytes()[0]
    assert [number for number, text in enumerate(told) if not text] == [winner]
    contents = {other.read_bytes() for other in tmp_path.iterdir()}
    assert contents == {bytes([number]) for number in range(count)}
    for number, text in enumerate(told):
        if number != winner:
            kept = text.removeprefix(f"another program has made {file} meanwhile, so this one is in ")
            assert not os.path.basename(kept).startswith(".") and kept.endswith(".png")
            with open(kept, "rb") as stream:
                assert stream.read() == bytes([number])


@pytest.mark.usefixtures("links")
def test_files_are_written_together(tmp_path):
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    write_files(files, [b"a", b"b"], overwrite=False)
    assert [file.read_bytes() for file in files] == [b"a", b"b"] and names(tmp_path) == ["a.png", "b.png"]
    write_files(files, [b"c", b"d"], overwrite=True)
    assert [file.read_bytes() for file in files] == [b"c", b"d"] and names(tmp_path) == ["a.png", "b.png"]


def test_a_file_that_is_taken_does_not_stop_the_others(tmp_path):
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    files[0].write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"a\.png meanwhile, so this one is in .*a\.[0-9a-f]{16}\.png"):
        write_files(files, [b"a", b"b"], overwrite=False)
    assert files[0].read_bytes() == b"mine" and files[1].read_bytes() == b"b" and len(names(tmp_path)) == 3


def test_a_write_that_fails_leaves_nothing_and_names_the_file(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"before")
    monkeypatch.setattr("pathlib.Path.open", lambda *_: open("/dev/full", "wb"))  # noqa: SIM115  # the caller closes it
    with pytest.raises(OSError, match="No space left on device") as raised:
        write_whole(tmp_path / "a.png", b"after")
    assert raised.value.errno == errno.ENOSPC and raised.value.filename == str(tmp_path / "a.png")
    monkeypatch.undo()
    assert names(tmp_path) == ["a.png"] and (tmp_path / "a.png").read_bytes() == b"before"


def test_checking_leaves_nothing(tmp_path):
    check_outputs([tmp_path / "a.png", tmp_path / "b.png"], overwrite=False)
    assert names(tmp_path) == []


def test_modes_are_those_of_other_files(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "a.png", b"a")
    finally:
        os.umask(before)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o640


WRITER = """
import os, sys, time
from pathlib import Path
from runtime import atomic_files
replace = os.replace
def wait(*names):
    print("written", flush=True)
    sys.stdin.readline()
    replace(*names)
os.replace = wait
atomic_files.write_whole(Path(sys.argv[1]), b"content")
"""
"""Writes a file, and waits between the last byte and the name."""


@pytest.fixture
def writer(tmp_path):
    """A process that is about to give ``a.png`` its name."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "a.png")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "written\n"
        yield process
        process.kill()


def test_what_a_killed_program_has_left_is_removed(tmp_path, writer):
    (tmp_path / "b.png").write_bytes(b"other")
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert len(names(tmp_path)) == 2
    remove_leftovers([tmp_path / "b.png"])
    assert len(names(tmp_path)) == 2, "the leftover is another file's"
    remove_leftovers([tmp_path / "a.png"])
    assert names(tmp_path) == ["b.png"]


def test_what_a_running_program_writes_is_left_alone(tmp_path, writer):
    remove_leftovers([tmp_path / "a.png"])
    remove_leftovers_in(tmp_path)
    writer.communicate("go on\n")
    assert writer.returncode == 0 and names(tmp_path) == ["a.png"]


def test_files_that_are_not_ours_are_left_alone(tmp_path):
    others = [".a.png", ".a.png.swp", ".a.png.0123", f"a.png.{16 * '0'}", f".a.png.{16 * 'x'}", "a.png"]
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / f".a.png.{16 * '0'}").mkdir()
    remove_leftovers([tmp_path / "a.png"])
    remove_leftovers([tmp_path / "missing" / "a.png"])
    remove_leftovers_in(tmp_path)
    assert names(tmp_path) == sorted([*others, f".a.png.{16 * '0'}"])


def test_a_file_that_is_taken_for_left_over_before_it_is_locked_is_written_again(tmp_path, monkeypatch):
    taken = []

    def late(stream):
        if not taken:
            taken.append(stream.name)
            file_locks.remove_abandoned(Path(stream.name))
        return file_locks.hold(stream)

    monkeypatch.setattr("runtime.atomic_files.hold", late)
    write_whole(tmp_path / "a.png", b"content")
    assert len(taken) == 1 and names(tmp_path) == ["a.png"] and (tmp_path / "a.png").read_bytes() == b"content"


def no_locks(stream, how):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("where", ["Windows", "a file system without locks"])
def test_without_locks_what_is_a_day_old_is_left_over(tmp_path, monkeypatch, where):
    monkeypatch.setattr(file_locks, "HAS_LOCKS", where != "Windows")
    monkeypatch.setattr(fcntl, "flock", no_locks)
    old, new = (tmp_path / f".a.png.{16 * digit}" for digit in "01")
    for file in (old, new):
        file.write_bytes(b"")
    os.utime(old, (time.time() - 90_000,) * 2)
    remove_leftovers([tmp_path / "a.png"])
    assert names(tmp_path) == [new.name]
    write_files([tmp_path / "a.png"], [b"a"], overwrite=True)
    assert (tmp_path / "a.png").read_bytes() == b"a"
