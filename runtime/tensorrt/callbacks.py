"""What happens in Python while TensorRT calls back into it: none of it may get lost.

TensorRT calls loggers, readers, writers and monitors from C++, where nothing may be raised. Its bindings print what
such a method raises ("[ERROR] Exception caught in log(): KeyboardInterrupt") and go on as if nothing had happened:
seen with TensorRT-RTX 1.7.1, which does this without a driver too. So methods keep what they raise, and it is raised
when TensorRT has returned.

Ctrl-C and SIGTERM need more. Python handles a signal before the main thread's next bytecode, which during a long call
of TensorRT is the first of a callback, outside of any ``try``. So their handlers wait until TensorRT has returned.
"""

import functools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_ASKING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
"""Signals that ask a program to end; which of them there are depends on the system."""


class Callbacks:
    """The callbacks of one user of TensorRT: what they raised, and which signals came meanwhile."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        """The first that a callback raised since the last call of TensorRT."""
        self.signals: list[tuple[int, FrameType | None]] = []

    @property
    def ending(self) -> bool:
        """Whether the call that is under way should come to an early end: it will raise in any case."""
        return bool(self.error or self.signals)

    def guarded(self, otherwise: Any = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorate a callback: what it raises is kept, and it returns `otherwise`, which TensorRT takes for failure."""

        def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(method)
            def call(*arguments: Any) -> Any:
                try:
                    return method(*arguments)
                except BaseException as error:
                    self.error = self.error or error
                    return otherwise

            return call

        return decorate

    @contextmanager
    def delivered(self) -> Iterator[None]:
        """Put around calls of TensorRT; afterwards come the signals, and what a callback raised.

        Both are raised in place of an error of the calls themselves, which they will have caused. Not to be nested.
        """
        with _held_back(self.signals):
            try:
                yield
            finally:
                self.raise_kept()

    def raise_kept(self) -> None:
        """Raise what a callback raised, if one did."""
        error, self.error = self.error, None
        if error is not None:
            raise error


@contextmanager
def _held_back(came: list[tuple[int, FrameType | None]]) -> Iterator[None]:
    """Note signals in `came`, and call their handlers at the end. Only the main thread has signals to handle.

    Handlers that are not Python's need not wait: they do not pass through a callback.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: handler for number in _ASKING if callable(handler := signal.getsignal(number))}
    for number in handlers:
        signal.signal(number, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        arrived, came[:] = list(came), []
        for number, frame in arrived:
            handlers[signal.Signals(number)](number, frame)
