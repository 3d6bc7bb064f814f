"""Bundles as the build command makes them, and directories that all test processes share."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Shared = Callable[[str, Callable[[Path], object]], Path]
"""Type of the fixture `shared`."""


def build_bundle(checkpoint: Path, output: Path, precision: str, **options: Any) -> Path:
    """What ``python -m export.build`` writes to `output`, which is returned; quiet unless told otherwise.

    The only place of the tests that calls `export.build.command.build`. torch is imported here at the earliest.
    """
    from export.build.command import build
    from export.build.options import BuildOptions

    given = {"checkpoint": checkpoint, "output": output, "precision": precision, "quiet": True, **options}
    build(BuildOptions(**given))
    return output


def make_once(directory: Path, make: Callable[[Path], object]) -> Path:
    """`directory`, filled by ``make(directory)`` unless another process has done so; that one is waited for.

    A `make` that fails leaves the directory to the next process, which starts afresh.
    """
    directory.parent.mkdir(exist_ok=True)
    done = directory.parent / f"{directory.name}.done"
    with (directory.parent / f"{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            make(directory)
            done.touch()
    return directory
