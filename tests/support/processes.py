"""Processes as a shell starts and judges them, and the script that makes checkpoints."""

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(command: Sequence[object], stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """A process in the repository's root that Ctrl-C reaches: whoever runs the tests may be ignoring it."""
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        stderr=stderr,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def shell_code(process: subprocess.Popen[str]) -> int:
    """The exit code as ``$?``: Python now and then ends by the signal itself after Ctrl-C, which a shell calls 130."""
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def make_checkpoint(directory: Path, *arguments: object) -> Path:
    """What scripts/make_checkpoint.py writes to `directory`, in this process: starting another takes longer."""
    from scripts.make_checkpoint import main

    code = main([str(part) for part in ("--quiet", "--output", directory, *arguments)])
    assert code == 0, f"scripts.make_checkpoint ended with {code}; its message is in the captured output"
    return directory
