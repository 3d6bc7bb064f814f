"""Files that appear whole or not at all."""

import contextlib
import os
import re
import secrets
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO

from runtime.file_locks import HAS_LOCKS, hold, remove_abandoned

_HIDDEN = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}", re.DOTALL)
"""Names of files that are being written; those of `_hidden`."""


def check_outputs(files: Sequence[Path], overwrite: bool) -> None:
    """Find out before the work starts whether its files can be written.

    Raises:
        FileExistsError: a file exists and may not be replaced, or is no plain file.
        FileNotFoundError: its directory does not exist.
        PermissionError: its directory cannot be written.
    """
    for file in files:
        if file.is_dir():
            raise FileExistsError(f"the output {file} is a directory, wanted a file name such as {file / 'output'}")
        if file.is_symlink() or (file.exists() and not file.is_file()):
            raise FileExistsError(f"the output {file} is a link or a device, wanted a plain file")
        if file.exists() and not overwrite:
            raise FileExistsError(f"the output {file} exists; choose another --output or add --overwrite")
        if not file.absolute().parent.is_dir():
            raise FileNotFoundError(f"the output directory {file.parent} does not exist")
    for folder in dict.fromkeys(file.parent for file in files):
        _check_writable(next(file for file in files if file.parent == folder))


def write_whole(file: Path, content: bytes) -> None:
    """Write one file; an existing one is replaced."""
    write_files([file], [content], overwrite=True)


def write_files(files: Sequence[Path], contents: Sequence[bytes], overwrite: bool) -> None:
    """Write the contents under hidden names, then give all files their own.

    Without `overwrite` a file that another program has made since `check_outputs` is left alone, and what was to be
    there is kept beside it under a name that is free.

    Raises:
        FileExistsError: that has happened; the message says where the content is.
        OSError: a file cannot be written. Nothing of any of them is left then.
    """
    hidden = [_hidden(file) for file in files]
    moved: dict[Path, Path] = {}
    with contextlib.ExitStack() as written:
        try:
            for name, file, content in zip(hidden, files, contents, strict=True):
                written.enter_context(_written(name, file, content))
            if not HAS_LOCKS:
                written.close()  # Windows gives no other name to a file that is open
            for name, file in zip(hidden, files, strict=True):
                if overwrite:
                    os.replace(name, file)
                elif not _take_name(name, file):
                    moved[file] = file.with_name(f"{file.stem}{name.suffix}{file.suffix}")
                    os.replace(name, moved[file])
        finally:
            # Also after a signal: the names are known before the files are there.
            for name in hidden:
                with contextlib.suppress(OSError):
                    name.unlink(missing_ok=True)
    if moved:
        told = [f"another program has made {file} meanwhile, so this one is in {kept}" for file, kept in moved.items()]
        raise FileExistsError("; ".join(told))


def remove_leftovers(files: Collection[Path]) -> None:
    """Remove what programs that were killed while they wrote these files have left beside them."""
    for folder in {file.parent for file in files}:
        remove_leftovers_in(folder, {file.name for file in files if file.parent == folder})


def remove_leftovers_in(folder: Path, names: Collection[str] | None = None) -> None:
    """The same for files of these names in one folder; None for all."""
    with contextlib.suppress(OSError):
        for file in folder.iterdir():
            match = _HIDDEN.fullmatch(file.name)
            if match and (names is None or match["name"] in names):
                remove_abandoned(file)


def _hidden(file: Path) -> Path:
    """A name beside `file` that no other file has."""
    return file.with_name(f".{file.name}.{secrets.token_hex(8)}")


def _check_writable(file: Path) -> None:
    """Raise PermissionError unless a file can be made beside `file`."""
    probe = _hidden(file)
    try:
        probe.touch(exist_ok=False)
    except OSError as error:
        raise PermissionError(f"cannot write to {file.parent}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def _written(name: Path, file: Path, content: bytes) -> IO[bytes]:
    """A new file with this content. As long as it is open, no program takes it for given up."""
    try:
        with contextlib.ExitStack() as opened:
            stream = opened.enter_context(name.open("xb"))
            while not hold(stream):
                stream.close()
                stream = opened.enter_context(name.open("xb"))
            stream.write(content)
            stream.flush()
            opened.pop_all()
            return stream
    except OSError as error:  # a full disk: what it says of itself does not name a file
        raise type(error)(error.errno, error.strerror, str(file)) from error


def _take_name(name: Path, file: Path) -> bool:
    """Move a file to a name that is free; False if it is not. Of several programs that try, one succeeds."""
    try:
        os.link(name, file)
    except FileExistsError:
        return False
    except OSError:
        # A file system without hard links, such as those of memory cards: the name is taken first, then filled.
        try:
            file.touch(exist_ok=False)
        except FileExistsError:
            return False
        os.replace(name, file)
        return True
    name.unlink()
    return True
