"""``python -m scripts.fuzz``: read broken inputs of every kind for some minutes, and write down what goes wrong.

The same seed gives the same inputs; how far a run gets depends on the machine, unless --count says how far.
"""

import argparse
import fnmatch
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from export.reporting.text_table import aligned
from runtime.console import guard
from scripts.fuzz.campaign import Campaign, Results
from scripts.fuzz.case import World, make_case
from scripts.fuzz.findings import ABOUT, target_of
from scripts.fuzz.judge import judge
from scripts.fuzz.targets import TARGETS
from scripts.fuzz.worker import check_examples
from scripts.fuzz.world import make_world

PROGRAM = "scripts.fuzz"
MINUTES = 15.0
SETTINGS = {
    "HF_HUB_OFFLINE": "1",  # odd options may look like the id of a model
    "TOKENIZERS_PARALLELISM": "false",  # its threads do not survive a fork
    "OMP_NUM_THREADS": "1",  # nor do PyTorch's
}


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog=f"python -m {PROGRAM}", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--minutes", type=float, default=MINUTES, metavar="N", help="how long (default: %(default)g)")
    add("--count", type=int, metavar="N", help="inputs of each target and source, instead of a time")
    add("--seed", type=int, default=0, metavar="N", help="of the inputs (default: %(default)s)")
    add("--only", nargs="+", default=["*"], metavar="NAME", help=f"some targets of: {', '.join(TARGETS)}; * is allowed")
    add("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes (default: %(default)s)")
    add("--findings", type=Path, default=Path("fuzz-findings"), metavar="DIR", help="gets the inputs that show faults")
    add("--replay", nargs="+", type=Path, metavar="FILE", help="read these findings again, and nothing else")
    return parser


def run(args: argparse.Namespace) -> None:
    """Do what the options say; RuntimeError when something was found."""
    chosen = {name: make for name, make in TARGETS.items() if any(fnmatch.fnmatch(name, only) for only in args.only)}
    if not chosen:
        raise ValueError(f"--only is {' '.join(args.only)}, wanted some of {', '.join(TARGETS)}")
    if not args.minutes > 0 or not args.workers > 0:
        raise ValueError(f"--minutes is {args.minutes:g} and --workers {args.workers}, wanted numbers above 0")
    os.environ |= SETTINGS
    torch.set_num_threads(1)  # it has been imported, and does not look at the environment any more
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        print(f"{PROGRAM}: building a tiny bundle; seed {args.seed}", file=sys.stderr)
        world = make_world(folder)
        if args.replay:
            replay(args.replay, world, folder)
            return
        for target, make in chosen.items():
            check_examples(target, make_case(make, world, folder / "examples" / target))
        campaign = Campaign(chosen, world, folder, args.findings, lambda text: print(text, file=sys.stderr))
        seconds = args.minutes * 60 if args.count is None else float("inf")
        results = campaign.run(args.seed, args.workers, seconds, args.count)
    print(as_text(results))
    if results.faults:
        raise RuntimeError(f"{len(results.faults)} faults were found; the inputs are in {args.findings}")


def replay(files: Sequence[Path], world: World, folder: Path) -> None:
    """Read findings again; RuntimeError when one still shows a fault."""
    left = 0
    for number, file in enumerate(file for file in files if not file.name.endswith(ABOUT)):
        case = make_case(TARGETS[target_of(file)], world, folder / "replay" / str(number))
        outcome = judge(case, file.read_bytes())
        fault = outcome.fault
        said = f"{fault.kind}: {fault.what} at {fault.place}" if fault else outcome.message or "accepted"
        print(f"{file.name}: {said}")
        left += fault is not None
    if left:
        raise RuntimeError(f"{left} findings still show faults")


def as_text(results: Results) -> str:
    """A table of the targets, and the faults."""
    rows = [("target", "inputs", "by hypothesis", "taken", "slowest s", "most MB", "faults")]
    for name, found in results.figures.items():
        faults = sum(target == name for target, _ in results.faults)
        figures = (
            found.inputs,
            found.properties,
            found.accepted,
            f"{found.slowest:.2f}",
            found.peak_bytes >> 20,
            faults,
        )
        rows.append((name, *map(str, figures)))
    total = sum(found.inputs for found in results.figures.values())
    lines = [aligned(rows), "", f"{total} inputs, {len(results.faults)} faults"]
    for (target, signature), count in results.faults.most_common():
        fault = results.described[target, signature]
        lines.append(f"{count} x {target}: {fault.kind}: {fault.what[:200]!r} at {fault.place}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    return guard(PROGRAM, lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
