"""The largest resident size of this process within a stretch of time, where the system tells it: on Linux."""

from contextlib import suppress
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PEAK = "5"
"""What makes Linux forget the peak so far (proc(5))."""


def forget_peak() -> None:
    """Begin a stretch. Where the system does not allow it, the peak is that of the whole process."""
    with suppress(OSError):
        _RESET.write_text(_PEAK, encoding="ascii")


def peak_bytes() -> int | None:
    """The largest size since `forget_peak`; None where the system does not tell."""
    with suppress(OSError, ValueError):
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return None
