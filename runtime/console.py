"""How the commands speak and end: one line for any error that a user can cause, and an exit code that says what it was.

Messages on standard error are worth no failure: one that cannot be written is dropped, and the work goes on.
"""

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TextIO, cast

from runtime.errors import cut

_LONGEST = 4000
"""Characters of a message: a screen, whatever a file or a library had to say."""
ERROR, INTERRUPTED, READER_GONE = 1, 130, 141
"""Exit codes; the last is a shell's for a program whose output nobody reads any more."""
_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that ask a program to end: by an administrator, and by a terminal that is closed. Windows has no SIGHUP."""
USER_ERRORS = (OSError, ValueError, RuntimeError, MemoryError)
"""What a user can cause; anything else is a mistake of ours and keeps its traceback."""


def guard(program: str, job: Callable[[], None]) -> int:
    """Run `job` and return the exit code: 0, 1 after an error, 130 after Ctrl-C, 141 when nobody reads its output.

    After SIGTERM and SIGHUP the exit codes 143 and 129 are raised. Errors are printed to stderr in one line. With
    logging at DEBUG the traceback goes there as well.
    """
    for number in _ENDING:
        # One that whoever started this command ignores, as nohup does, stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminate)
    with _streams():
        try:
            job()
            if sys.stdout is not None:
                sys.stdout.flush()
        except KeyboardInterrupt:
            print(f"{program}: interrupted", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:
            return READER_GONE
        except USER_ERRORS as error:
            logging.getLogger(__name__).debug("traceback", exc_info=True)
            print(f"{program}: error: {describe(error)}", file=sys.stderr)
            return ERROR
    return 0


def describe(error: BaseException) -> str:
    """The message of an error, of bounded length and without Python's decoration of operating-system errors.

    What a terminal would obey and not show is written as an escape: names in files come from strangers.
    """
    return printable(cut(_described(error), _LONGEST))


def printable(text: str) -> str:
    """A text with escapes for all but letters and the ends of lines."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def _described(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}" if str(error) else "not enough memory"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def json_text(value: Any, encoding: str = "utf-8", indent: int | None = None) -> str:
    """JSON with letters as they are, or as escapes where `encoding` lacks one, such as the bytes of odd file names."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def discard(stream: TextIO) -> None:
    """Let what a stream still holds, and gets from now on, go nowhere, so that nothing fails for it at the end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _Messages:
    """Standard error, for messages that are dropped when it is closed, or full."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
        except OSError:
            discard(self.stream)
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError:
            discard(self.stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def _streams() -> Iterator[None]:
    """Standard error that cannot fail; and at the end, standard output that holds nothing more."""
    with contextlib.ExitStack() as opened:
        # A file that is opened while a standard stream is closed takes its number, and then gets its messages.
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            opened.callback(os.close, number)
        os.close(number)
        messages = sys.stderr or opened.enter_context(open(os.devnull, "w", encoding="utf-8"))
        opened.enter_context(contextlib.redirect_stderr(cast(TextIO, _Messages(messages))))
        try:
            yield
        finally:
            if sys.stdout is not None:
                try:
                    sys.stdout.flush()
                except OSError:
                    discard(sys.stdout)


def _terminate(number: int, frame: FrameType | None) -> None:
    for again in _ENDING:
        signal.signal(again, signal.SIG_IGN)  # what cleans up now must come to its end
    raise SystemExit(128 + number)
