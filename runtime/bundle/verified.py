"""Files that were verified before and have not changed since: their gigabytes are not hashed again at every start.

A file is taken for unchanged while its size, its times of change, its inode and the wanted hash are those of its last
verification. What alters a file behind the file system's back, such as a failing disk, is not seen: that takes hashing.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from runtime.atomic_files import remove_leftovers_in, write_whole

FOLDER = "verified"
"""Name of the folder in the user's cache directory; it has a file for each bundle."""
MOST_BUNDLES = 100
_SETTLED = 2_000_000_000
"""Nanoseconds after which a change shows in a file's times for certain: those of memory cards count in two seconds."""


class Verified:
    """What is known of one bundle's files."""

    def __init__(self, cache: Path | None, directory: Path, folder: str = FOLDER, links: bool = False) -> None:
        """Read what is remembered.

        Args:
            cache: the user's cache directory; None where there is none: then nothing is remembered.
            directory: of the bundle.
            folder: name of the folder in the cache, one for each purpose.
            links: the files get and lose second names, which counts as a change of the inode: only the time of the
                last change of the contents is then looked at.
        """
        name = hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:32]
        self.file = None if cache is None else cache / folder / f"{name}.json"
        self.known = _read(self.file)
        self._links = links

    def knows(self, path: str, status: os.stat_result, sha256: str) -> bool:
        """Whether a file of the bundle was found to have this hash, and is the same still."""
        return self.known.get(path) == [*self._marks(status), sha256]

    def keep(self, found: Mapping[str, tuple[os.stat_result, str]]) -> None:
        """Remember hashes of files, by path. `found` has what the file system said before they were read.

        Nothing fails when that cannot be written: the files are hashed again the next time.
        """
        settled = time.time_ns() - _SETTLED
        new = {
            path: [*self._marks(status), sha256]
            for path, (status, sha256) in found.items()
            if max(self._times(status)) < settled
        }
        if self.file is None or not new:
            return
        self.known |= new
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers_in(self.file.parent)
            write_whole(self.file, json.dumps(self.known).encode())
            _forget_oldest(self.file.parent)

    def _marks(self, status: os.stat_result) -> list[int]:
        return [status.st_size, *self._times(status), status.st_ino]

    def _times(self, status: os.stat_result) -> list[int]:
        return [status.st_mtime_ns] if self._links else [status.st_mtime_ns, status.st_ctime_ns]


def _read(file: Path | None) -> dict[str, Any]:
    """What a file remembers; nothing where it is missing or damaged."""
    if file is None:
        return {}
    try:
        known = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _forget_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    for file in files[: max(0, len(files) - MOST_BUNDLES)]:
        file.unlink(missing_ok=True)
