"""Whether the files of finished stages are what they were when they were written.

A damaged file may have the size of a sound one, so only its hash tells. Hashing 31 GB takes a minute or so, far less
than building them, but an unchanged bundle need not be read at each build. So what was hashed or written once is
remembered in the user's cache directory, and a file of a finished bundle is not read again while its size, its time of
change and its inode are the same. What alters a file behind the file system's back, such as a failing disk, is found
when the runtime verifies the bundle; ``--fresh`` then builds it again. Files of an unfinished bundle are hashed in any
case: a power failure leaves files of the right size without their contents.
"""

import os
import stat
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runtime.bundle.integrity import sha256
from runtime.bundle.manifest import FileSpec
from runtime.bundle.verified import Verified
from runtime.progress import Progress
from runtime.user_cache import cache_directory

MEMORY = "built"
"""Name of the folder in the user's cache directory; it has a file for each bundle."""


class Sound:
    """What is known of the files of one bundle, and of the unfinished one that is to replace it."""

    def __init__(self, output: Path, quiet: bool) -> None:
        """`output`: the bundle's name. `quiet`: no progress; warnings of damaged files are not kept back."""
        self._output, self._quiet = output, quiet
        self._memory = Verified(cache_directory(), output, MEMORY, links=True)
        self._hashed: dict[tuple[Path, int, int, int], str] = {}
        self._told: set[Path] = set()
        self._noted: dict[str, tuple[os.stat_result, str]] = {}

    def altered(self, folder: Path, files: Mapping[str, FileSpec]) -> set[str]:
        """Paths of the files in a folder that are missing or not what they were; a warning names each once."""
        status = {path: _status(folder / path, spec.size) for path, spec in files.items()}
        left = {path: seen for path, seen in status.items() if seen and not self._knows(folder, path, seen, files)}
        digests = self._digests(folder, left)
        altered = {
            path
            for path, seen in status.items()
            if not seen or digests.get(path, files[path].sha256) != files[path].sha256
        }
        for file in sorted({folder / path for path in altered} - self._told):
            print(f"warning: {file} is missing or altered; its stage is built again", file=sys.stderr)
            self._told.add(file)
        return altered

    def note(self, path: str, file: Path, sha256: str) -> None:
        """The bundle will have `file` at `path`, and it has this hash now."""
        self._noted[path] = file.stat(), sha256

    def remember(self) -> None:
        """Remember what was noted."""
        self._memory.keep(self._noted)

    def _knows(self, folder: Path, path: str, status: os.stat_result, files: Mapping[str, FileSpec]) -> bool:
        return folder == self._output and self._memory.knows(path, status, files[path].sha256)

    def _digests(self, folder: Path, left: Mapping[str, os.stat_result]) -> dict[str, str]:
        """SHA-256 by path, two files at a time: hashlib lets go of the interpreter's lock. Nothing is read twice."""
        marks = {path: (folder / path, seen.st_size, seen.st_mtime_ns, seen.st_ino) for path, seen in left.items()}
        new = [path for path, mark in marks.items() if mark not in self._hashed]
        total = sum(left[path].st_size for path in new)
        with (
            Progress("checking", total, "B", quiet=self._quiet or not new, leave=False) as bar,
            ThreadPoolExecutor(2) as pool,
        ):
            for path, digest in zip(new, pool.map(digest_of, [folder / path for path in new]), strict=True):
                self._hashed[marks[path]] = digest
                bar.update(left[path].st_size)
        return {path: self._hashed[mark] for path, mark in marks.items()}


def _status(file: Path, size: int) -> os.stat_result | None:
    """What the file system says of a file; None unless it is a plain one of that size."""
    try:
        status = file.lstat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) and status.st_size == size else None


def digest_of(file: Path) -> str:
    """SHA-256 of a file; empty for one that is missing or cannot be read, which is as good as altered."""
    try:
        return sha256(file)
    except OSError:
        return ""
