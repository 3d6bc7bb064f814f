"""How the commands end: one line for any error that a user can cause, and an exit code that says what happened."""

import logging
import signal
import sys
from collections.abc import Callable
from types import FrameType

ERROR, INTERRUPTED = 1, 130
_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that ask a program to end: by an administrator, and by a terminal that is closed. Windows has no SIGHUP."""
USER_ERRORS = (OSError, ValueError, RuntimeError, MemoryError)
"""What a user can cause; anything else is a mistake of ours and keeps its traceback."""


def guard(program: str, job: Callable[[], None]) -> int:
    """Run `job` and return the exit code: 0, 1 after an error, 130 after Ctrl-C.

    After SIGTERM and SIGHUP the exit codes 143 and 129 are raised.

    Errors are printed to stderr in one line. With logging at DEBUG the traceback goes there as well.
    """
    for number in _ENDING:
        # One that whoever started this command ignores, as nohup does, stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminate)
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
    for again in _ENDING:
        signal.signal(again, signal.SIG_IGN)  # what cleans up now must come to its end
    raise SystemExit(128 + number)
