"""Peak memory of commands and of this process, against allocations of known sizes."""

import ctypes
import subprocess
import sys
import time

import pytest

from export.memory import Peak, anonymous_bytes
from scripts.bench.peak_memory import run_measured

SIZE = 200 << 20
GRAB = f"import time; block = bytearray(b'1') * {SIZE}; time.sleep(0.3)"


def test_the_peak_counts_a_child_and_not_what_came_after() -> None:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {GRAB!r}]); print('done')"
    measured = run_measured([sys.executable, "-c", code])
    # Two interpreters beside the block: some 10 MB each.
    assert SIZE <= measured.peak_bytes < SIZE + (100 << 20)
    assert measured.seconds >= 0.3
    assert (measured.code, measured.stdout.strip(), measured.stderr) == (0, "done", "")


def test_exit_codes_and_long_outputs_come_back() -> None:
    # More than a pipe holds: a command that nobody reads would stop.
    measured = run_measured([sys.executable, "-c", "import sys; print('x' * 300_000); sys.exit('broken')"])
    assert measured.code == 1
    assert len(measured.stdout) == 300_001
    assert measured.stderr.strip() == "broken"


def test_a_command_that_takes_too_long_is_killed() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_measured([sys.executable, "-c", "import time; time.sleep(600)"], timeout=0.2)


def test_a_missing_program() -> None:
    with pytest.raises(FileNotFoundError):
        run_measured(["no-such-program"])


def test_the_peak_of_this_process() -> None:
    with Peak() as memory:
        block = ctypes.create_string_buffer(SIZE)
        ctypes.memset(block, 1, SIZE)
        time.sleep(0.3)
        del block
        time.sleep(0.1)
    # What else this process gives back meanwhile is small.
    assert memory.grown >= 0.95 * SIZE


def test_a_process_that_has_ended_holds_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert anonymous_bytes(process.pid) == 0
