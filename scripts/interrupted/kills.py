"""Kill a command at any moment: it resumes, its result is that of an undisturbed one, and nothing is left behind."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from scripts.interrupted.folders import Contents, contents, differences, halves
from scripts.interrupted.processes import Ended, cache_of, kill_self, run
from scripts.interrupted.works import Work

AGAIN = 0.3
"""Share of the commands that are killed once more when they resume."""
COLD = 0.15
"""Share that find one traced graph less in the user's cache."""
OUR_CACHE = "ideogram4-trt"
"""What of the user's cache is ours; ONNX Runtime has some of it as well."""
EXISTS = "exists; choose another --output"
"""What a command says whose output is there."""


@dataclass(frozen=True)
class Undisturbed:
    """A command that was left alone."""

    work: Work
    ended: Ended
    before: Contents
    after: Contents


@dataclass(frozen=True)
class Moment:
    """When a command is killed."""

    seconds: float | None = None
    """After its start; None to count calls."""
    call: int = 0
    """That changes files, and is not made any more; counted from 1."""

    def __str__(self) -> str:
        return f"before call {self.call}" if self.seconds is None else f"after {self.seconds:.2f} s"


@dataclass(frozen=True)
class Trial:
    """What came of an interrupted command."""

    met: int
    """How many of the interruptions met it: a command may be done before."""
    moment: str
    faults: tuple[str, ...]


def undisturbed(work: Work, folder: Path, cache: Path) -> Undisturbed:
    """What a command makes, and how long it takes with all graphs in the user's cache; RuntimeError if it fails."""
    for _ in ("once to fill the cache", "once more"):
        begin(work, folder, cache)
        before = contents(folder)
        ended = run(work.command, folder)
        if ended.code != 0:
            raise RuntimeError(f"{work.name} fails when it is left alone: {ended.said}")
        shutil.copytree(cache_of(folder), cache, dirs_exist_ok=True)
    return Undisturbed(work, ended, before, contents(folder))


def random_kill(known: Undisturbed, folder: Path, cache: Path, random: Random) -> Trial:
    """Kill a command at a random moment, and some once more when they resume."""
    moments = [_random_moment(known, random) for _ in range(2 if random.random() < AGAIN else 1)]
    return kill(known, folder, cache, moments, random if random.random() < COLD else None)


def kill(
    known: Undisturbed, folder: Path, cache: Path, moments: Sequence[Moment], missing: Random | None = None
) -> Trial:
    """Kill a command, look at what there is, and let it resume.

    Args:
        known: the command when it is left alone.
        folder: is made anew.
        cache: of a user, which is copied.
        moments: for the command, and for those that resume it.
        missing: takes a traced graph away from the cache; None to take none.
    """
    begin(known.work, folder, cache)
    if missing is not None:
        missing.choice(sorted(cache_of(folder).rglob("*.graph"))).unlink()
    met, faults = 0, []
    for moment in moments:
        ended = _killed(known.work, folder, moment)
        met += ended.code < 0
        faults += [f"killed: {what}" for what in halves(contents(folder), known.before, known.after, known.work.whole)]
    ended = run(known.work.command, folder)
    if ended.code != 0 and not (ended.code == 1 and EXISTS in ended.said):
        faults.append(f"does not resume, exit code {ended.code}: {ended.said[-500:]}")
    faults += differences(contents(folder), known.after)
    faults += [f"{file} is left behind" for file in (cache_of(folder) / OUR_CACHE).rglob(".*")]
    return Trial(met, ", then ".join(map(str, moments)), tuple(faults))


def begin(work: Work, folder: Path, cache: Path) -> None:
    """A new folder with what the command begins with, and a user's cache beside it."""
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copytree(cache, cache_of(folder))
    work.prepare(folder)


def _random_moment(known: Undisturbed, random: Random) -> Moment:
    if random.random() < 0.5:
        return Moment(seconds=random.uniform(0, known.ended.seconds * 1.05))
    return Moment(call=random.randint(1, known.ended.calls))


def _killed(work: Work, folder: Path, moment: Moment) -> Ended:
    if moment.seconds is not None:
        return run(work.command, folder, kill_after=moment.seconds)
    return run(work.command, folder, before_call=lambda number: number == moment.call and kill_self())
