"""Kill a command at any moment: it resumes, its result is that of an undisturbed one, and nothing is left behind."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random

from scripts.interrupted.folders import Contents, contents, differences, halves
from scripts.interrupted.processes import Ended, cache_of, kill_self, run
from scripts.interrupted.works import Work

AGAIN = 0.3
"""Share of the commands that are killed once more when they resume."""
OUR_CACHE = "ideogram4-trt"
"""What of the user's cache is ours; ONNX Runtime has some of it as well."""
COLD = 0.15
"""Share that find one traced graph less in the user's cache."""


@dataclass(frozen=True)
class Undisturbed:
    """A command that was left alone."""

    work: Work
    ended: Ended
    before: Contents
    after: Contents


@dataclass(frozen=True)
class Killed:
    """What came of a command that was killed."""

    kills: int
    """How often it was there to be killed: one that is done has ended."""
    moment: str
    faults: tuple[str, ...]


def undisturbed(work: Work, folder: Path, cache: Path) -> Undisturbed:
    """What a command makes, and how long it takes with all graphs in the user's cache; RuntimeError if it fails."""
    for _ in ("once to fill the cache", "once more"):
        _begin(work, folder, cache)
        before = contents(folder)
        ended = run(work.command, folder)
        if ended.code != 0:
            raise RuntimeError(f"{work.name} fails when it is left alone: {ended.said}")
        shutil.copytree(cache_of(folder), cache, dirs_exist_ok=True)
    return Undisturbed(work, ended, before, contents(folder))


def kill(known: Undisturbed, folder: Path, cache: Path, random: Random) -> Killed:
    """Kill a command, look at what there is, and let it resume, perhaps to be killed once more."""
    _begin(known.work, folder, cache, random if random.random() < COLD else None)
    kills, moments, faults = 0, [], []
    for _ in range(2 if random.random() < AGAIN else 1):
        moment, ended = _killed(known, folder, random)
        moments.append(moment)
        kills += ended.code < 0
        faults += [f"killed: {what}" for what in halves(contents(folder), known.before, known.after, known.work.whole)]
    ended = run(known.work.command, folder)
    done = ended.code == 1 and "exists; choose another --output or add --overwrite" in ended.said
    if ended.code != 0 and not done:
        faults.append(f"does not resume, exit code {ended.code}: {ended.said[-500:]}")
    faults += differences(contents(folder), known.after)
    faults += [f"{file} is left behind" for file in (cache_of(folder) / OUR_CACHE).rglob(".*")]
    return Killed(kills, ", then ".join(moments), tuple(faults))


def _killed(known: Undisturbed, folder: Path, random: Random) -> tuple[str, Ended]:
    """Run the command to a random moment, in time or before a call that changes files."""
    if random.random() < 0.5:
        seconds = random.uniform(0, known.ended.seconds * 1.05)
        return f"after {seconds:.2f} s", run(known.work.command, folder, kill_after=seconds)
    call = random.randint(1, known.ended.calls)
    return f"before call {call}", run(known.work.command, folder, before_call=lambda n: n == call and kill_self())


def _begin(work: Work, folder: Path, cache: Path, random: Random | None = None) -> None:
    """A new folder with what the command begins with, and a user's cache; `random` takes one graph away from it."""
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copytree(cache, cache_of(folder))
    if random is not None:
        graphs = sorted(cache_of(folder).rglob("*.graph"))
        random.choice(graphs).unlink()
    work.prepare(folder)
