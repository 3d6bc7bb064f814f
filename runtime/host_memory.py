"""How much of the machine's memory a program may still take.

In a container that is the least of what the machine has available and of what the limits of its control groups leave:
Linux ends a program that takes more. Pages of files that have not been used lately count as free, as they do for the
machine: the kernel gives them up first.
"""

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_GROUPS = "sys/fs/cgroup"
_Names = tuple[tuple[str, ...], str, str]
_V1: _Names = ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"
_V2: _Names = ("memory.max", "memory.high"), "memory.current", "inactive_file"
"""Files with the limits and with what is taken, and the line of ``memory.stat`` with what can be given up."""


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this program can take without swapping; None on systems that do not tell.

    `root` is where ``/proc`` and ``/sys`` are, for tests.
    """
    if sys.platform == "win32":
        return _windows_memory()
    machine = _line(root / "proc/meminfo", "MemAvailable:")
    if machine is None:
        return None
    return min([machine << 10, *_left_by_groups(root)])


class _MemoryStatus(ctypes.Structure):
    """Windows' MEMORYSTATUSEX."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("total", "available", "page_total", "page_available")),
        *((name, ctypes.c_uint64) for name in ("virtual_total", "virtual_available", "virtual_extended")),
    )


def _windows_memory() -> int | None:
    """What Windows has available; containers and jobs are not looked at."""
    windll = getattr(ctypes, "windll", None)
    if windll is None:
        return None
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    found = windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return int(status.available) if found else None


def _left_by_groups(root: Path) -> Iterator[int]:
    """What each limit of a control group that this process is in leaves."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            places, names = [root / _GROUPS, root / _GROUPS / "unified"], _V2
        elif "memory" in controllers.split(","):
            places, names = [root / _GROUPS / "memory"], _V1
        else:
            continue
        own = PurePosixPath(path.lstrip("/"))
        for place in places:
            # Every group around it has a limit of its own. In a container the path may be one outside of it, which is
            # not there: then its group is the topmost one that it sees.
            for group in (own, *own.parents):
                yield from _left(place / group, *names)


def _left(group: Path, limits: tuple[str, ...], taken: str, idle: str) -> Iterator[int]:
    used = _number(group / taken)
    if used is None:
        return
    given_up = _line(group / "memory.stat", idle) or 0
    for name in limits:
        if (limit := _number(group / name)) is not None:
            yield max(0, limit - max(0, used - given_up))


def _number(file: Path) -> int | None:
    """The number in a file; None where there is none, or the word ``max``."""
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _line(file: Path, name: str) -> int | None:
    """The number behind a name at the beginning of a line."""
    for line in _text(file).splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name and words[1].isdecimal():
            return int(words[1])
    return None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
