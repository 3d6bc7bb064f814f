"""Fill the disk under a command: it says so and ends, what was there stays, and with room it does its work."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

from scripts.interrupted.folders import contents, differences, halves
from scripts.interrupted.kills import EXISTS, Trial, Undisturbed
from scripts.interrupted.processes import cache_of, run

DISK_BYTES = 160 << 20
"""Of the disk: builds want 64 MB to spare before they begin."""
_LEFT = 1 << 20
"""Bytes that are left on a full disk, at most."""


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """A disk in memory at `place`; RuntimeError where none can be mounted."""
    place.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode != 0:
        raise RuntimeError(f"a disk in memory cannot be mounted, which takes root: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def random_fill(known: Undisturbed, place: Path, cache: Path, random: Random) -> Trial:
    """Fill the disk at a random moment but for a few bytes, look at what there is, make room, and try again."""
    work, call, left = known.work, random.randint(1, known.ended.calls), random.choice((0, random.randrange(_LEFT)))
    with small_disk(place):
        folder, ballast = place / "folder", place / "ballast"
        folder.mkdir()
        shutil.copytree(cache, cache_of(folder))
        work.prepare(folder)
        ended = run(work.command, folder, before_call=lambda number: number == call and _fill(ballast, left))
        faults = [f"full: {what}" for what in halves(contents(folder), known.before, known.after, work.whole)]
        faults += _judged(ended.code, ended.said)
        ballast.unlink(missing_ok=True)
        again = run(work.command, folder)
        if again.code != 0 and not (ended.code == 0 and EXISTS in again.said):
            faults.append(f"does not go on with room, exit code {again.code}: {again.said[-500:]}")
        faults += differences(contents(folder), known.after)
    return Trial(int(ended.code != 0), f"{left} bytes left before call {call}", tuple(faults))


def _fill(ballast: Path, left: int) -> None:
    """Take all of the disk but for `left` bytes."""
    status = os.statvfs(ballast.parent)
    size = status.f_bavail * status.f_frsize - left
    with suppress(OSError), ballast.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(1, size))


def _judged(code: int, said: str) -> list[str]:
    """What is wrong with how a command ended whose disk was full."""
    if "Traceback" in said:
        return [f"a traceback: {said[-800:]}"]
    if code not in (0, 1) or (code == 1 and "No space left on device" not in said and "has only" not in said):
        return [f"exit code {code}, and no word of the disk: {said[-500:]}"]
    return []
