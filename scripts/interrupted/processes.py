"""A command in a process of its own that begins with the work: what the commands import is imported already.

Python tells of the calls that change files before they are made (audit hooks, PEP 578), so the process can be killed,
or its disk filled, in front of any one of them. Moments in time find what happens in between.
"""

import mmap
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

_CACHE = "cache"
"""Beside the folder of a command: its user's cache."""
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
"""Events of calls that change files; opening one for writing is known by its flags."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_BROKEN = 70
"""Exit code of a command that leaves an exception to Python, with a traceback."""

Command = Callable[[], int]
"""Returns the exit code."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    """Exit code; for a signal its number below 0."""
    seconds: float
    calls: int
    """That change files."""
    said: str
    """On standard output and standard error."""


def run(
    command: Command,
    folder: Path,
    kill_after: float | None = None,
    before_call: Callable[[int], object] = lambda number: None,
) -> Ended:
    """Run a command in `folder` and wait for its end.

    Args:
        command: is run in a fork of this process.
        folder: its working directory; the user's cache is beside it.
        kill_after: seconds after which the process gets SIGKILL, if it is still there.
        before_call: is called in the process before each call that changes files, with the call's number from 1 on.
    """
    calls = mmap.mmap(-1, 8)
    with tempfile.TemporaryFile() as said:
        started = time.monotonic()
        process = os.fork()
        if process == 0:
            _become(command, folder, said.fileno(), calls, before_call)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(process, signal.SIGKILL)  # a process that has ended is there until it is waited for
        _, status = os.waitpid(process, 0)
        seconds = time.monotonic() - started
        said.seek(0)
        text = said.read().decode("utf-8", "replace")
    return Ended(os.waitstatus_to_exitcode(status), seconds, int.from_bytes(calls[:8], "little"), text)


def kill_self() -> None:
    """End this process as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def cache_of(folder: Path) -> Path:
    """The user's cache of commands that run in `folder`."""
    return folder.parent / _CACHE


def _become(
    command: Command, folder: Path, said: int, calls: mmap.mmap, before_call: Callable[[int], object]
) -> NoReturn:
    """Be the command's process, to its end."""
    code = _BROKEN
    try:
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = str(cache_of(folder))
        sys.addaudithook(_counting(calls, before_call))
        code = command()
        sys.stdout.flush()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else _BROKEN
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def _counting(calls: mmap.mmap, before_call: Callable[[int], object]) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that counts the calls that change files."""
    inside = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal inside
        opens = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if inside or not (opens or event in _CHANGES):
            return
        inside = True  # what is done here may change files itself
        number = int.from_bytes(calls[:8], "little") + 1
        calls[:8] = number.to_bytes(8, "little")
        before_call(number)
        inside = False

    return hook
