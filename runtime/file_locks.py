"""Which half-written files somebody still writes: a program that does so holds a lock, which ends with the program.

Windows has no such locks, and neither have some network file systems. There a file counts as given up after a day.
"""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    HAS_LOCKS = False
else:
    HAS_LOCKS = True

_GIVEN_UP = 24 * 3600
"""Seconds after which a file belongs to no running program, where that cannot be known."""


def hold(stream: IO[bytes]) -> bool:
    """Lock a new file until it is closed; False if another program has taken it for given up and removed it."""
    if HAS_LOCKS:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_EX)
    return os.fstat(stream.fileno()).st_nlink > 0


def remove_abandoned(file: Path) -> None:
    """Remove a file that no running program writes. Nothing fails if it cannot be opened, or removed."""
    with suppress(OSError), file.open("r+b") as stream:
        if _is_abandoned(stream):
            file.unlink()


def _is_abandoned(stream: IO[bytes]) -> bool:
    if HAS_LOCKS:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
    return os.fstat(stream.fileno()).st_mtime < time.time() - _GIVEN_UP
