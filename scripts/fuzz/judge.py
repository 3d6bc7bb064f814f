"""Whether a reader did what it must: took an input, or refused it as a user is told, soon and in little memory.

A user is told of an error in one message. So an error must be one that `runtime.console.guard` turns into a message and
that somebody worded: a class of this project, a plain ValueError or RuntimeError, or one of the operating system's. Its
message must have an end, hold nothing that a terminal obeys, and name the file.
"""

import contextlib
import io
import resource
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.console import USER_ERRORS, describe
from scripts.fuzz.case import Case
from scripts.root import ROOT

SECONDS = 2.0
"""Processor time for one input. Time on the clock would count what other programs take."""
LONGEST = 4000
"""Characters of a message."""
_PACKAGES = ("runtime", "serving", "model", "calibration", "export")
_PLAIN = (ValueError, RuntimeError, MemoryError)
"""Classes that our code raises as they are. What is derived from them elsewhere is worded by a library."""
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Fault:
    """What a reader did wrong."""

    kind: str
    """exception, refused, unnamed, long, control, slow, memory; crash and hang are seen by the campaign."""
    what: str
    """The error, or the figure."""
    place: str = ""
    """The last of our lines that ran."""

    @property
    def signature(self) -> str:
        """Equal for faults that are most likely the same."""
        return f"{self.kind} {self.what.split(':')[0] if self.kind == 'exception' else ''} {self.place}"


@dataclass(frozen=True)
class Outcome:
    """What came of one input."""

    accepted: bool
    seconds: float
    """Of processor time."""
    peak_bytes: int
    """Memory that reading took, beside what the program had before."""
    fault: Fault | None
    message: str = ""
    """What a user would be told."""


def judge(case: Case, content: bytes) -> Outcome:
    """Write an input to the case's file and read it."""
    case.file.parent.mkdir(parents=True, exist_ok=True)  # of a cache, for one
    case.file.write_bytes(content)
    before = _reset_peak()
    started = time.process_time()
    error: BaseException | None = None
    with _quiet():
        try:
            case.read()
        except KeyboardInterrupt:
            raise
        except BaseException as raised:  # a panic of a library in Rust is no Exception
            error = raised
    seconds, peak = time.process_time() - started, max(0, _memory("VmHWM") - before)
    fault = None if error is None else _fault(error, case)
    if fault is None and seconds > SECONDS:
        fault = Fault("slow", f"{seconds:.1f} s of processor time", _place(error))
    if fault is None and peak > case.peak_bytes:
        fault = Fault("memory", f"{peak >> 20} MB, wanted at most {case.peak_bytes >> 20} MB", _place(error))
    return Outcome(error is None, seconds, peak, fault, "" if error is None else describe(error))


def limit_memory(spare: int) -> None:
    """Let this process have `spare` bytes of address space more than it has now, and no core files."""
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + spare,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _fault(error: BaseException, case: Case) -> Fault | None:
    """What is wrong with an error; None for one that a user can be told."""
    what = f"{type(error).__name__}: {str(error)[:500]}"
    if not isinstance(error, USER_ERRORS) or not _is_worded(error):
        return Fault("exception", what, _place(error))
    if not case.may_refuse:
        return Fault("refused", what, _place(error))
    # The system's own errors are as long as the path that the user gave.
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if len(message) > LONGEST:
        return Fault("long", f"{len(message)} characters: {message[:200]}…", _place(error))
    if bad := sorted({letter for letter in describe(error) if not letter.isprintable() and letter != "\n"}):
        return Fault("control", f"{bad!r} in {what!r}", _place(error))
    if case.names and not any(name in describe(error) for name in case.names):
        return Fault("unnamed", what, _place(error))
    return None


def _is_worded(error: BaseException) -> bool:
    """Whether our code, or the operating system, has raised it."""
    if type(error).__module__.partition(".")[0] in _PACKAGES:
        return True
    if isinstance(error, OSError):
        return type(error).__module__ == "builtins"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return type(error) in _PLAIN and _ours(last.filename) and (last.line or "").startswith("raise ")


def _place(error: BaseException | None) -> str:
    """The last line of the project in a traceback, as ``model/config.py:27 from_dict``."""
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    own = [frame for frame in frames if _ours(frame.filename)]
    if not own:
        return ""
    return f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].lineno} {own[-1].name}"


def _ours(file: str) -> bool:
    path = Path(file)
    return path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "scripts") and ".venv" not in path.parts


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what readers print."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _reset_peak() -> int:
    """Let the peak of this process's memory begin now; returns the memory that it has, in bytes."""
    _RESET.write_text("5")
    return _memory("VmRSS")


def _memory(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"{_STATUS} has no {key}")
