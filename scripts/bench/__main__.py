"""Our runtime against diffusers' pipeline: one small checkpoint, one machine, one run.

    python -m scripts.bench --workdir /tmp/bench --json bench.json

Ours is the numpy runtime on ONNX Runtime, the peer `diffusers.Ideogram4Pipeline`; both in float32 on the CPU, with the
same threads, prompt, seed and schedule. The weights are random: the figures say what the runtimes cost on top of and
around the matrix products, which weigh more in a larger model. The sides take turns and their medians are compared.

- warm: seconds for a picture in a process that has made one before. diffusers pads every prompt to
  ``max_sequence_length``; it is measured at the prompt's own length (its best case) and at its default.
- warm, in int8: the same with a bundle of ``--precision int8``, against the peer at the prompt's own length and against
  our own float32.
- cold start: from the start of a process to the finished PNG, imports and loading included, with all files in the page
  cache. The peer gets the prompt's own length. "without pictures" is the same less the warm picture's time.
- peak memory: the largest resident set of those processes.
- outside engine: the part of a warm picture's time that is not spent in calls of ONNX Runtime sessions.
- installed size: what pip adds to an empty environment (with ``--installed-size``; takes minutes).
- builds (with ``--builds``): see scripts/bench/builds.py.
- same picture: the largest difference of any pixel between the sides, over all runs. It alone makes the command fail.

A run is repeated when other processes used the CPU meanwhile: PyTorch's threads wait for each other by spinning, and
one busy neighbour on two cores slows them tenfold.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from scripts.bench import builds
from scripts.bench.installed_size import measure_installed
from scripts.bench.measures import Figure, Turns, compare, table
from scripts.bench.sides import DEFAULT_LENGTH, PLAN, SHAPES, measure_cold, measure_warm, prepare
from tests.support.peers import Shape


def bench(
    workdir: Path, shape: Shape, size: int, threads: int, repeats: int, installed_size: bool
) -> tuple[list[Figure], dict[str, Any]]:
    """Measure everything: the table's rows, the one about the pictures last, and the report for JSON."""
    checkpoint, bundle, int8 = prepare(workdir, shape)
    turns = Turns()
    tokens, warm, pictures = measure_warm(turns, checkpoint, bundle, int8, size, threads, repeats)
    cold, cold_pictures = measure_cold(turns, checkpoint, bundle, size, threads, tokens)
    rows = speed_rows(tokens, warm, cold)
    if installed_size:
        ours, peer = measure_installed()
        rows.append(compare("installed size", [ours], [peer], "MB", 1e6, goal=5))
    largest = max(int(np.abs(one.astype(int) - pictures[0]).max()) for one in pictures + cold_pictures)
    # Rounding to bytes can turn the last bits of float32 into one step of 255.
    rows.append(Figure("same picture", largest, unit="/255", wanted=1))
    report = {
        "figures": [asdict(row) | {"verdict": row.verdict} for row in rows],
        "size": size,
        "threads": threads,
        "preset": PLAN.preset,
        "tokens": tokens,
        "shape": asdict(shape),
        "versions": {name: version(name) for name in ("onnxruntime", "numpy", "torch", "diffusers", "transformers")},
        "machine": {"python": platform.python_version(), "platform": platform.platform(), "cores": os.cpu_count()},
        "runs": turns.runs,
        "disturbed": turns.disturbed,
        "warm": warm,
        "cold": cold,
    }
    return rows, report


def speed_rows(tokens: int, warm: dict[str, list[float]], cold: dict[str, list[tuple[float, int]]]) -> list[Figure]:
    """Rows on time and memory, from what `measure_warm` and `measure_cold` return."""
    (start_ours, peak_ours), (start_peer, peak_peer) = (zip(*cold[side], strict=True) for side in ("ours", "peer"))
    without = {
        side: [seconds - median(warm[side]) for seconds in starts]
        for side, starts in (("ours", start_ours), ("peer", start_peer))
    }
    return [
        compare(f"warm, {tokens} tokens", warm["ours"], warm["peer"], "s", goal=1.5),
        compare(f"warm, padded to {DEFAULT_LENGTH}", warm["ours"], warm["peer_default"], "s", goal=5),
        compare("warm, in int8", warm["int8"], warm["peer"], "s", goal=2),
        compare("  against our float32", warm["int8"], warm["ours"], "s"),
        compare("cold start", start_ours, start_peer, "s", goal=5),
        compare("  without pictures", without["ours"], without["peer"], "s"),
        compare("peak memory", peak_ours, peak_peer, "MB", 1e6),
        Figure("outside engine", 100 * median(warm["outside"]), unit=" %", wanted=3),
    ]


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--repeats", type=int, default=5, help="warm pictures of each side (default: %(default)s)")
    add("--threads", type=int, default=2, help="CPU threads of each side (default: %(default)s)")
    add("--shape", choices=SHAPES, default="demo", help="sizes of the model (default: %(default)s)")
    add("--size", type=int, default=256, help="width and height in pixels (default: %(default)s)")
    add("--workdir", type=Path, help="keep checkpoint and bundle here for the next time (default: temporary)")
    add("--installed-size", action="store_true", help="install both sides into new environments and compare them")
    add("--builds", action="store_true", help="also time and memory of the demo's builds, engines included")
    add("--json", type=Path, metavar="FILE", help="write the report here")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code is 1 when the two sides made different pictures."""
    args = build_parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        workdir, shape = args.workdir or Path(folder), SHAPES[args.shape]
        rows, report = bench(workdir, shape, args.size, args.threads, args.repeats, args.installed_size)
    print(table(rows))
    print(f"\n{args.size} x {args.size}, {PLAN.preset}, {args.threads} threads, {args.shape}: {shape}")
    print(f"{report['versions']}\n{report['disturbed']} of {report['runs']} runs were disturbed by other processes")
    if args.builds:
        with tempfile.TemporaryDirectory() as folder:
            built = builds.measure("demo", None, Path(folder))
        print(f"\n{builds.table(built)}")
        report["builds"] = [asdict(row) for row in built]
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(rows[-1].verdict == "missed")


if __name__ == "__main__":
    sys.exit(main())
