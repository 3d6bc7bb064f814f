"""``python -m scripts.interrupted``: kill commands at random moments, and fill the disk under them.

Builds of all kinds, rebuilds, batches of pictures, measurements and model repositories, on a tiny checkpoint. Each is
compared with one that was left alone.
"""

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from tqdm import tqdm

from export.reporting.text_table import aligned
from runtime.console import guard
from runtime.progress import Progress
from scripts.fuzz.world import make_world
from scripts.interrupted import processes
from scripts.interrupted.disks import random_fill
from scripts.interrupted.kills import Moment, Trial, Undisturbed, kill, random_kill, undisturbed
from scripts.interrupted.works import works

PROGRAM = "scripts.interrupted"
_TRIAL = "trial"


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog=f"python -m {PROGRAM}", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--kills", type=int, default=200, metavar="N", help="how often commands are killed (default: %(default)s)")
    add("--full-disks", type=int, default=40, metavar="N", help="how often the disk runs full (default: %(default)s)")
    add("--every-call", action="store_true", help="kill each command once before each call that changes files, instead")
    add("--seed", type=int, default=0, metavar="N", help="of the moments (default: %(default)s)")
    return parser


def run(args: argparse.Namespace) -> None:
    """Do what the options say; RuntimeError when a command is not as it must be."""
    # Threads do not survive a fork.
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory(prefix="interrupted-") as name:
        folder, random = Path(name), Random(args.seed)
        known, cache = _undisturbed(folder, args.seed), folder / "cache"
        trial = folder / _TRIAL / "folder"
        if args.every_call:
            moments = [(one, Moment(call=call)) for one in known for call in range(1, one.ended.calls + 1)]
            trials = ((one.work.name, kill(one, trial, cache, [moment])) for one, moment in moments)
            faults = _count("kills", trials, len(moments))
        else:
            each = itertools.cycle(known)
            faults = _count(
                "kills", ((one.work.name, random_kill(one, trial, cache, random)) for one in each), args.kills
            )
            disk, each = folder / "disk", itertools.cycle(known)
            fills = ((one.work.name, random_fill(one, disk, cache, random)) for one in each)
            faults += _count("full disks", fills, args.full_disks)
    if faults:
        raise RuntimeError(f"{faults} times a command was not as it must be; see above")


def _undisturbed(folder: Path, seed: int) -> list[Undisturbed]:
    print(f"{PROGRAM}: a tiny bundle, and each command left alone; seed {seed}", file=sys.stderr)
    # In a process of its own: this one must stay without threads, which do not survive a fork.
    making = folder / "making"
    making.mkdir()
    made = processes.run(lambda: int(make_world(folder) is None), making)
    if made.code != 0:
        raise RuntimeError(f"the bundle cannot be built: {made.said}")
    place, cache = folder / _TRIAL / "folder", processes.cache_of(making)
    return [undisturbed(work, place, cache) for work in works(folder / "checkpoint", folder / "bundle")]


def _count(what: str, trials: Iterator[tuple[str, Trial]], wanted: int) -> int:
    """Go on until so many interruptions have met a command, and print a table; the number of trials with faults."""
    rows: dict[str, list[int]] = {}
    met = faults = 0
    with Progress(what, wanted) as bar:
        while met < wanted and (trial := next(trials, None)) is not None:
            name, found = trial
            for fault in found.faults:
                tqdm.write(f"{name}, {found.moment}: {fault}", file=sys.stderr)
            row = rows.setdefault(name, [0, 0, 0])
            row[:] = row[0] + 1, row[1] + found.met, row[2] + bool(found.faults)
            bar.update(min(found.met, wanted - met))
            met, faults = met + found.met, faults + bool(found.faults)
    total = [sum(row[column] for row in rows.values()) for column in range(3)]
    table = [["command", "runs", what, "faults"], *([name, *map(str, row)] for name, row in rows.items())]
    print(aligned([*table, ["all", *map(str, total)]], words=1), flush=True)
    return faults


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    return guard(PROGRAM, lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
