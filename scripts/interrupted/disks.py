"""Fill the disk under a command: it says so and ends, what was there stays, and with room it does its work."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from scripts.interrupted.folders import contents, differences, halves
from scripts.interrupted.kills import Undisturbed
from scripts.interrupted.processes import cache_of, run

DISK_BYTES = 160 << 20
"""Of the disk: builds want 64 MB to spare before they begin."""
_BALLAST = "ballast"
"""File beside the command's folder that fills the disk."""


@dataclass(frozen=True)
class Filled:
    """What came of a command whose disk was filled."""

    failed: bool
    """Whether it noticed."""
    moment: str
    said: str
    faults: tuple[str, ...]


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """A disk in memory at `place`, which needs root; RuntimeError where none can be mounted."""
    place.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        raise RuntimeError(f"a disk in memory cannot be mounted: {mounted.stderr.strip()}; it takes root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(known: Undisturbed, place: Path, cache: Path, random: Random) -> Filled:
    """Fill the disk at a random moment but for a few bytes, look at what there is, make room, and try again."""
    work = known.work
    with small_disk(place):
        folder, ballast = place / "folder", place / _BALLAST
        folder.mkdir()
        shutil.copytree(cache, cache_of(folder))
        work.prepare(folder)
        call, left = random.randint(1, known.ended.calls), random.choice((0, random.randrange(1 << 20)))

        def before_call(number: int) -> None:
            if number == call:
                _fill(ballast, left)

        ended = run(work.command, folder, before_call=before_call)
        found = contents(folder)
        faults = [f"full: {what}" for what in halves(found, known.before, known.after, work.whole)]
        faults += _judged(ended.code, ended.said)
        ballast.unlink(missing_ok=True)
        again = run(work.command, folder)
        done = ended.code == 0 and "exists; choose another --output" in again.said
        if again.code != 0 and not done:
            faults.append(f"does not go on with room, exit code {again.code}: {again.said[-500:]}")
        faults += differences(contents(folder), known.after)
    return Filled(ended.code != 0, f"{left} bytes left before call {call}", ended.said, tuple(faults))


def _fill(ballast: Path, left: int) -> None:
    """Take all of the disk but for `left` bytes."""
    status = os.statvfs(ballast.parent)
    size = status.f_bavail * status.f_frsize - left
    with suppress(OSError), ballast.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(1, size))


def _judged(code: int, said: str) -> list[str]:
    """What is wrong with how a command ended whose disk was full."""
    if code == 0:
        return []
    if "Traceback" in said:
        return [f"a traceback: {said[-800:]}"]
    if code != 1 or ("No space left on device" not in said and "has only" not in said):
        return [f"exit code {code}, and no word of the disk: {said[-500:]}"]
    return []
