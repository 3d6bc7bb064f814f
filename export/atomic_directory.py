"""A bundle appears whole or not at all: it is made beside its final name and renamed."""

import contextlib
import ctypes
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from runtime.bundle.integrity import sha256
from runtime.bundle.json_fields import DecodeError, parse
from runtime.bundle.manifest import FileSpec, Manifest
from runtime.constants import MANIFEST
from runtime.file_locks import remove_abandoned

_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""


def check_output(output: Path, overwrite: bool) -> None:
    """Raise FileExistsError or FileNotFoundError unless a bundle may be written to `output`.

    Even with `overwrite` only a bundle or an empty directory is replaced, so that a mistyped path loses nothing, and no
    bundle in which somebody keeps other files.
    """
    check_directory(output, overwrite, "bundle", lambda: not any(output.iterdir()) or (output / MANIFEST).is_file())
    if (foreign := _foreign(output)) is not None:
        raise FileExistsError(f"the output {output} holds {foreign}, which is not the bundle's; move it away first")


def _foreign(bundle: Path) -> str | None:
    """A file that the manifest does not list; None also where there is no manifest that lists files."""
    try:
        listed = parse((bundle / MANIFEST).read_bytes(), MANIFEST)["files"].keys()
    except (OSError, DecodeError, TypeError, KeyError, AttributeError):
        return None
    names = (file.relative_to(bundle).as_posix() for file in sorted(bundle.rglob("*")) if not file.is_dir())
    return next((name for name in names if name != MANIFEST and name not in listed), None)


def check_directory(output: Path, overwrite: bool, what: str, replaceable: Callable[[], bool]) -> None:
    """The same for any directory that is made whole; `replaceable` is asked about one that exists."""
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"the directory {output.absolute().parent} for the {what} does not exist")
    if not output.exists() and not output.is_symlink():
        return
    if not overwrite:
        remove_abandoned(_lock_name(output))  # of a program that was killed when all else was done
        raise FileExistsError(f"the output {output} exists; choose another --output or add --overwrite")
    if output.is_symlink() or not output.is_dir() or not replaceable():
        raise FileExistsError(f"the output {output} exists and is not a {what}; it is not overwritten")


def unfinished_name(output: Path) -> Path:
    """The hidden directory that `output` is made in."""
    return output.absolute().with_name(f".{output.absolute().name}.partial")


def _lock_name(output: Path) -> Path:
    """The hidden file that whoever makes `output` holds a lock on."""
    return unfinished_name(output).with_suffix(".lock")


@contextlib.contextmanager
def unfinished(output: Path, keep: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """A hidden directory beside `output` to build in; it is removed in the end unless `publish` has renamed it, or
    `keep` says that what is in it is worth keeping.

    What an earlier build left there is removed first, unless `keep` says so of it as well. A build that is still
    running holds a lock on it.
    """
    partial = unfinished_name(output)
    with _locked(output):
        try:
            if not keep(partial):
                shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(exist_ok=True)
            yield partial
        finally:
            if not keep(partial):
                shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Be the only program that makes `output`; FileExistsError if there is another."""
    try:
        import fcntl
    except ImportError as error:
        raise RuntimeError(
            "this command needs Linux (or WSL 2 on Windows), whose locks keep two builds apart; what it makes runs "
            "anywhere, and trt-generate needs no Linux"
        ) from error
    lock, held = _lock_name(output), False
    while not held:
        try:
            handle = lock.open("w")
        except OSError as error:
            raise PermissionError(f"cannot write to {lock.parent}: {error.strerror}") from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FileExistsError(f"another build is writing {output}") from None
            # One that was ready meanwhile may have removed the file: a third would lock another of its name.
            if held := os.fstat(handle.fileno()).st_nlink > 0:
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)


def link_or_copy(file: Path, name: Path) -> None:
    """Give a file a second name: a hard link, or a copy where there can be none, as on another file system.

    A copy gets its name when it is whole: one that is cut short, by a full disk or a kill, is never taken for the file.
    """
    try:
        os.link(file, name)
        return
    except FileExistsError:
        raise
    except OSError:
        copy = name.with_name(f".{name.name}.copy")
    try:
        shutil.copyfile(file, copy)
        os.replace(copy, name)
    except BaseException:  # Ctrl-C included. What a kill leaves is overwritten by the next try.
        copy.unlink(missing_ok=True)
        raise


def why_not_linked(file: Path, folder: Path) -> str:
    """Why a file can have no second name in a folder that can be written to, by trying; empty if it can."""
    probe = folder / f".{secrets.token_hex(8)}"
    try:
        os.link(file, probe)
    except OSError as error:
        return error.strerror or str(error)
    probe.unlink()
    return ""


def check_apart(output: Path, source: Path, what: str, inside: bool = False) -> None:
    """Raise ValueError if a directory that is written is the one that it is made from, or lies inside or around it.

    Args:
        output: to be written.
        source: that is read.
        what: `source` is, for the message.
        inside: let it lie inside.
    """
    written, read = output.resolve(), source.resolve()
    where = {
        "is": written == read,
        "lies around": written in read.parents,
        "lies inside": read in written.parents and not inside,
    }
    for how in (how for how, wrong in where.items() if wrong):
        raise ValueError(f"the output {output} {how} {what} {source}, which is only read; choose another --output")


def file_spec(file: Path) -> FileSpec:
    """Size and hash of a file."""
    return FileSpec(file.stat().st_size, sha256(file))


def publish(partial: Path, manifest: Manifest, output: Path) -> None:
    """Write the manifest, the last file, and give the bundle its name; an old bundle of that name is replaced."""
    (partial / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    rename(partial, output)


def rename(partial: Path, output: Path) -> None:
    """Give a finished directory its name; what had that name is removed afterwards.

    There is a directory of that name at any time, the old one or the new one, where the system can exchange two names.
    """
    old = partial.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        if _exchange(partial, output):
            shutil.rmtree(partial, ignore_errors=True)
            return
        os.rename(output, old)
    try:
        os.rename(partial, output)
    except BaseException:  # Ctrl-C included: what was there comes back
        if old.exists() and not output.exists():
            os.rename(old, output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names at one stroke; False where that cannot be done: by other systems, and some file systems."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(first), os.fsencode(second)
    return renameat2 is not None and renameat2(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0
