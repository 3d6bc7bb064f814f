"""Processes as a shell starts and judges them, and the script that makes checkpoints."""

import os
import signal
import subprocess
import sys
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
    """What scripts/make_checkpoint.py writes to `directory`."""
    command = [sys.executable, "-m", "scripts.make_checkpoint", "--quiet", "--output", directory, *arguments]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    return directory
