"""How far a stage of the work is: a bar on a terminal, and elsewhere, such as in a CI log, one line at its end."""

import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

_WIDTH = 24
"""Columns of a description, so that what follows is aligned."""
_NEWS_SECONDS = 300.0
"""A stage that takes longer says where it is this often, so that a log tells work from a hang."""


class Progress:
    """Shows one stage of the work on standard error; a context manager.

    On a terminal that is tqdm's bar. Elsewhere it is one line when the context ends, with what was done and the time;
    a stage of many minutes adds a line every five minutes, whenever it is told of progress.
    """

    def __init__(
        self,
        description: str,
        total: int | None = None,
        unit: str = "",
        *,
        done: int = 0,
        quiet: bool = False,
        leave: bool = True,
    ) -> None:
        """Begin a stage.

        Args:
            description: what is done, in a few words.
            total: units in all; None if that is unknown.
            unit: what is counted, in the singular; ``B`` for bytes, empty to show the time only.
            done: units that were done before.
            quiet: show nothing.
            leave: keep the bar, or write the line, when the stage is over; False where what follows says as much.
        """
        self.description, self.total, self.unit, self.n, self.quiet = description, total, unit, done, quiet
        self._leave = leave
        self._started = self._told = time.monotonic()
        self._bar: tqdm | None = None
        if not quiet and sys.stderr.isatty():
            # Without a unit there is nothing to count: tqdm would show "0it".
            form = None if unit else "{desc} {elapsed}"
            self._bar = tqdm(
                desc=f"{description:{_WIDTH}}",
                total=total,
                unit=unit or "it",
                unit_scale=unit == "B",
                initial=done,
                leave=leave,
                bar_format=form,
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._leave and not self.quiet:
            self._line("" if kind is None else "stopped after ")

    def update(self, count: int = 1) -> None:
        """`count` more units are done."""
        self.n += count
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.update(count)
        elif not self.quiet and time.monotonic() - self._told >= _NEWS_SECONDS:
            self._told = time.monotonic()
            self._line("so far ")

    def reset(self, total: int) -> None:
        """Count from 0 to `total`."""
        self.n, self.total = 0, total
        if self._bar is not None:
            self._bar.reset(total)

    def set_description(self, description: str) -> None:
        """Say what is done now; the last description is that of the stage's line."""
        self.description = description
        if self._bar is not None:
            self._bar.set_description_str(f"{description:{_WIDTH}}" + (": " if self.unit else ""))

    def _line(self, state: str) -> None:
        amount = f"{self._amount()} in " if self.unit else ""
        seconds = duration(time.monotonic() - self._started)
        print(f"{self.description:{_WIDTH}}  {state}{amount}{seconds}", file=sys.stderr, flush=True)

    def _amount(self) -> str:
        if self.unit == "B":
            return f"{self.n / 1e6:.1f} MB"
        count = str(self.n) if self.total in (None, self.n) else f"{self.n} of {self.total}"
        return f"{count} {self.unit}{'' if (self.total or self.n) == 1 else 's'}"


def track(items: Sequence[T], description: str, unit: str, *, quiet: bool = False) -> Iterator[T]:
    """The items, one after another; each counts as done when the next one is asked for."""
    with Progress(description, len(items), unit, quiet=quiet) as progress:
        for item in items:
            yield item
            progress.update()


def duration(seconds: float) -> str:
    """``4.2 s``, or ``4:05`` and ``1:04:05`` from a minute on."""
    return f"{seconds:.1f} s" if seconds < 60 else tqdm.format_interval(seconds).removeprefix("0")
