"""``python -m export.sensitivity``: what float8 costs, one group of activations at a time.

For each group of activations the transformers run with that group quantized and everything else in float32, at fixed
inputs on several noise levels; the error of the velocity says what the group costs. The weights are those of the
checkpoint on both sides. Groups that cost most are candidates for ``export.build --keep-base``.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calibration.checkpoint_options import add_checkpoint_options
from calibration.fake_quant import fake_quantized
from calibration.lora_options import add_lora_options
from calibration.points import POINTS, names_of, point_of
from calibration.prompts import DEFAULT_PROMPTS, read_prompts
from calibration.ranges import Ranges
from calibration.reference import prompt_encoder
from export.activation_ranges import activation_ranges
from export.demo_model import DEMO_CHECKPOINT
from export.graph.recipe import OPERANDS, PRODUCTS
from export.velocity import TRANSFORMERS, Sample, rms, trajectory_samples, velocity_errors
from model.checkpoint.directory import Checkpoint, open_checkpoint
from model.checkpoint.hub import checkpoint_directory
from model.checkpoint.lora import with_loras
from runtime.atomic_files import check_outputs, write_files
from runtime.console import guard
from runtime.progress import track

PROGRAM = "export.sensitivity"


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}", description="Measure what float8 activations cost, group by group."
    )
    add = parser.add_argument
    add_checkpoint_options(parser, DEMO_CHECKPOINT)
    add_lora_options(parser)
    add(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="ranges from python -m calibration; the demo measures its own",
    )
    add("--prompts", type=Path, default=DEFAULT_PROMPTS, metavar="FILE", help="one per line (default: calibration's)")
    add("--limit", type=int, default=2, metavar="N", help="use N prompts, spread over the file (default: %(default)s)")
    add("--preset", default="V4_TURBO_12", metavar="NAME", help="of the trajectory (default: %(default)s)")
    add("--levels", type=int, default=4, metavar="N", help="noise levels on it (default: %(default)s)")
    add("--seed", type=int, default=1000, metavar="N", help="of the first prompt's noise (default: %(default)s)")
    add("--output", type=Path, required=True, metavar="FILE", help="JSON file to write")
    add("--overwrite", action="store_true", help="replace the output if it exists")
    add("--quiet", action="store_true", help="no progress and no table")
    return parser


def measure(checkpoint: Checkpoint, ranges: Ranges, samples: Sequence[Sample], quiet: bool) -> list[dict[str, Any]]:
    """One row for each group of each transformer: ``stage``, ``group``, ``error`` (root mean square over the samples)
    and ``errors`` by time, largest error first."""
    rows = []
    for stage in TRANSFORMERS:
        if stage not in checkpoint.sources:
            continue
        module = checkpoint.load(stage)
        times = [sample.t for sample in samples if sample.stage == stage]
        table = {name: ranges.range_of(name) for name in names_of(stage, checkpoint.transformer.num_layers)}
        groups = groups_of(stage, checkpoint.transformer.num_layers)
        for group, points in track(list(groups.items()), stage, "group", quiet=quiet):
            with fake_quantized(module, stage, table, points):
                errors = velocity_errors(module, stage, samples)
            by_time = [{"t": t, "error": error} for t, error in zip(times, errors, strict=True)]
            rows.append({"stage": stage, "group": group, "error": rms(errors), "errors": by_time})
    return sorted(rows, key=lambda row: -row["error"])


def groups_of(stage: str, layers: int) -> dict[str, list[str]]:
    """The groups: everything, all products, all attention operands; each point in all layers; each layer."""
    names = names_of(stage, layers)
    groups = {
        "everything": names,
        "all products (--attention base)": [n for n in names if point_of(n) in PRODUCTS],
        "all attention operands": [n for n in names if point_of(n) in OPERANDS],
    }
    groups |= {f"{stage}.layers.*.{point}": [n for n in names if point_of(n) == point] for point in POINTS}
    groups |= {
        f"{stage}.layers.{layer}.*": [n for n in names if n.startswith(f"{stage}.layers.{layer}.")]
        for layer in range(layers)
    }
    return groups


def run(args: argparse.Namespace) -> None:
    """Do what the options say."""
    for name in ("limit", "levels"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}, wanted at least 1")
    check_outputs([args.output], args.overwrite)
    directory = checkpoint_directory(args.checkpoint, args.revision, args.quiet)
    checkpoint = with_loras(open_checkpoint(directory), args.lora, args.lora_target)
    ranges = activation_ranges(checkpoint, args.calibration, args.quiet)
    prompts = read_prompts(args.prompts, prompt_encoder(checkpoint))
    # Not the first ones: the demo's own calibration starts there.
    prompts = prompts[len(prompts) // (2 * args.limit) :: max(1, len(prompts) // args.limit)][: args.limit]
    samples = trajectory_samples(checkpoint, prompts, args.preset, args.levels, args.seed)
    rows = measure(checkpoint, ranges, samples, args.quiet)
    report = {
        "checkpoint": ranges.model.name,
        "algorithm": ranges.algorithm,
        "preset": args.preset,
        "prompts": prompts,
        "groups": rows,
    }
    write_files([args.output], [(json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode()], args.overwrite)
    if not args.quiet:
        print(f"{'relative error of the velocity':>32}  group quantized")
        for row in rows:
            label = row["group"] if row["group"].startswith("dit_") else f"{row['stage']}: {row['group']}"
            print(f"{row['error']:32.2e}  {label}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    return guard(PROGRAM, lambda: run(args))


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    sys.exit(main())
