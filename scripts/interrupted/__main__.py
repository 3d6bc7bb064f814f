"""``python -m scripts.interrupted``: kill commands at random moments, and fill the disk under them.

Builds of all kinds, rebuilds, batches of pictures, measurements and model repositories, on a tiny checkpoint. Each is
compared with one that was left alone.
"""

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from tqdm import tqdm

from export.reporting.text_table import aligned
from runtime.console import guard
from runtime.progress import Progress
from scripts.fuzz.world import make_world
from scripts.interrupted import processes
from scripts.interrupted.disks import fill
from scripts.interrupted.kills import Undisturbed, kill, undisturbed
from scripts.interrupted.works import works

PROGRAM = "scripts.interrupted"
_TRIAL = "trial"


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog=f"python -m {PROGRAM}", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--kills", type=int, default=200, metavar="N", help="how often commands are killed (default: %(default)s)")
    add("--full-disks", type=int, default=40, metavar="N", help="how often the disk runs full (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the moments (default: %(default)s)")
    return parser


def run(args: argparse.Namespace) -> None:
    """Do what the options say; RuntimeError when a command is not as it must be."""
    # Threads do not survive a fork.
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory(prefix="interrupted-") as name:
        known = _undisturbed(Path(name), args.seed)
        faults = _kills(known, Path(name), args.kills, Random(args.seed))
        faults += _disks(known, Path(name), args.full_disks, Random(args.seed))
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


def _kills(known: Sequence[Undisturbed], folder: Path, wanted: int, random: Random) -> int:
    """Kill the commands in turn until there have been as many kills as `wanted`; the number of faults."""
    rows, total, faults = {one.work.name: [0, 0, 0] for one in known}, 0, 0
    with Progress("kills", wanted, "kill") as bar:
        for one in itertools.cycle(known):
            if total >= wanted:
                break
            found = kill(one, folder / _TRIAL / "folder", folder / "cache", random)
            _tell(one.work.name, found.moment, found.faults)
            _add(rows[one.work.name], 1, found.kills, bool(found.faults))
            bar.update(min(found.kills, wanted - total))
            total, faults = total + found.kills, faults + bool(found.faults)
    print(_table(("command", "runs", "kills", "faults"), rows))
    return faults


def _disks(known: Sequence[Undisturbed], folder: Path, wanted: int, random: Random) -> int:
    """Fill the disk under the commands in turn until so many of them have noticed; the number of faults."""
    rows, total, faults = {one.work.name: [0, 0, 0] for one in known}, 0, 0
    with Progress("full disks", wanted, "disk") as bar:
        for one in itertools.cycle(known):
            if total >= wanted:
                break
            found = fill(one, folder / "disk", folder / "cache", random)
            _tell(one.work.name, found.moment, found.faults)
            _add(rows[one.work.name], 1, found.failed, bool(found.faults))
            bar.update(found.failed)
            total, faults = total + found.failed, faults + bool(found.faults)
    print(_table(("command", "runs", "failed for the disk", "faults"), rows))
    return faults


def _add(row: list[int], *counts: int) -> None:
    row[:] = [old + new for old, new in zip(row, counts, strict=True)]


def _tell(name: str, moment: str, faults: Sequence[str]) -> None:
    for fault in faults:
        tqdm.write(f"{name}, {moment}: {fault}", file=sys.stderr)


def _table(head: Sequence[str], rows: Mapping[str, Sequence[int]]) -> str:
    total = [sum(row[column] for row in rows.values()) for column in range(len(head) - 1)]
    lines = [*rows.items(), ("all", total)]
    return aligned([head, *([name, *map(str, counts)] for name, counts in lines)], words=1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    return guard(PROGRAM, lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
