"""What is in a folder, and what is wrong with it after an interruption."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

Contents = Mapping[str, str]
"""SHA-256 of each file, by its path; directories end in a slash and have none."""


def contents(folder: Path) -> Contents:
    """Of all files and directories, hidden ones too."""
    return {
        file.relative_to(folder).as_posix() + "/" * file.is_dir(): "" if file.is_dir() else _digest(file)
        for file in sorted(folder.rglob("*"))
    }


def halves(found: Contents, before: Contents, after: Contents, whole: Sequence[str]) -> list[str]:
    """What an interrupted command has left that is neither as before nor as in the end.

    Hidden files are the command's own affair as long as it may go on.

    Args:
        found: after the interruption.
        before: what the command began with.
        after: what it makes when it is left alone.
        whole: directories that must be entirely as before or entirely as in the end.
    """
    seen = {path: digest for path, digest in found.items() if not _is_hidden(path)}
    wrong = [path for path, digest in seen.items() if digest not in (before.get(path), after.get(path))]
    wrong += [f"{path} is gone" for path in before if path not in seen]
    for directory in whole:
        part = _below(seen, directory)
        if part not in (_below(before, directory), _below(after, directory)):
            wrong.append(f"{directory} is of two kinds")
    return wrong


def differences(found: Contents, wanted: Contents) -> list[str]:
    """What is not as it must be in the end."""
    missing = [f"{path} is missing" for path in wanted if path not in found]
    left = [f"{path} is left behind" for path in found if path not in wanted]
    return missing + left + [f"{path} differs" for path in found if path in wanted and found[path] != wanted[path]]


def _below(found: Contents, directory: str) -> dict[str, str]:
    return {path: digest for path, digest in found.items() if path.startswith(f"{directory}/")}


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
