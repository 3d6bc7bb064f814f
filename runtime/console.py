"""How the commands end: one line for any error that a user can cause, and an exit code that says what happened."""

import logging
import signal
import sys
from collections.abc import Callable
from types import FrameType

ERROR, INTERRUPTED = 1, 130
USER_ERRORS = (OSError, ValueError, RuntimeError, MemoryError)
"""What a user can cause; anything else is a mistake of ours and keeps its traceback."""


def guard(program: str, job: Callable[[], None]) -> int:
    """Run `job` and return the exit code: 0, 1 after an error, 130 after Ctrl-C; 143 is raised after SIGTERM.

    Errors are printed to stderr in one line. With logging at DEBUG the traceback goes there as well.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        job()
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except USER_ERRORS as error:
        logging.getLogger(__name__).debug("traceback", exc_info=True)
        print(f"{program}: error: {describe(error)}", file=sys.stderr)
        return ERROR
    return 0


def describe(error: BaseException) -> str:
    """The message of an error, without Python's decoration of operating-system errors."""
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}" if str(error) else "not enough memory"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
