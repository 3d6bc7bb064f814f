"""``python -m export.sensitivity``: what 8 bits cost, one point of one block at a time.

Each block of the text encoder and the transformers runs on the unquantized hidden state, with the weights and the input
of one of its products rounded and everything else in float32; the error of what it adds says what the point costs.
Those that cost most are candidates for ``export.build --keep-base``. One block is in memory at a time.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from calibration.checkpoint_options import add_checkpoint_options
from calibration.lora_options import add_lora_options
from export.demo_model import DEMO_CHECKPOINT
from export.graph.precision import ACTIVATIONS, QUANTIZED, precision_of
from export.graph.recipe import recipe_of
from export.graph.smoothing import Smoothing
from export.graph.stage import StageOptions
from export.measurements import Measurements, calibration_prompts, known_measurements, measure
from export.rounding.compare import StageError, compare_stages
from model.checkpoint.directory import Checkpoint, open_checkpoint
from model.checkpoint.hub import checkpoint_directory
from model.checkpoint.lora import with_loras
from runtime.atomic_files import check_outputs, write_files
from runtime.console import guard

PROGRAM = "export.sensitivity"
_SHOWN = 20


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}", description="Measure what 8 bits cost, point by point of each block."
    )
    add = parser.add_argument
    add_checkpoint_options(parser, DEMO_CHECKPOINT)
    add_lora_options(parser)
    add("--precision", choices=QUANTIZED, default="fp8", help="(default: %(default)s)")
    add("--activations", choices=ACTIVATIONS, help="as for export.build (default: token)")
    add("--attention", choices=("base", "fp8"), default="base", help="as for export.build (default: %(default)s)")
    add("--calibration", type=Path, metavar="FILE", help="as for export.build (default: measured here)")
    add("--prompt", help="what the text encoder gets (default: one of calibration's)")
    add("--output", type=Path, required=True, metavar="FILE", help="JSON file to write")
    add("--overwrite", action="store_true", help="replace the output if it exists")
    add("--quiet", action="store_true", help="no progress and no table")
    return parser


def run(args: argparse.Namespace) -> None:
    """Do what the options say."""
    types = precision_of(args.precision, None, "ort", args.activations)
    if args.attention == "fp8" and args.precision != "fp8":
        raise ValueError(f"--attention fp8 goes with --precision fp8, and --precision is {args.precision}")
    check_outputs([args.output], args.overwrite)
    directory = checkpoint_directory(args.checkpoint, args.revision, args.quiet)
    checkpoint = with_loras(open_checkpoint(directory), args.lora, args.lora_target)
    if (known := known_measurements(checkpoint, types, args.calibration)) is None:
        with tempfile.TemporaryDirectory() as folder:
            known = measure(checkpoint, types, Path(folder), args.quiet)
    options = StageOptions(types, recipe_of(types, args.attention), _ranges(known), smoothing=_smoothing(known))
    prompt = args.prompt or calibration_prompts(checkpoint)[0]
    errors = compare_stages(checkpoint, options, prompt, args.quiet, by_point=True)
    report = json.dumps(_report(checkpoint, args, prompt, errors), indent=1, ensure_ascii=False) + "\n"
    write_files([args.output], [report.encode()], args.overwrite)
    if not args.quiet:
        print(table(errors))


def _ranges(known: Measurements) -> dict[str, float]:
    return {} if known.ranges is None else {name: known.ranges.range_of(name) for name in known.ranges.tensors}


def _smoothing(known: Measurements) -> Smoothing | None:
    return None if known.channels is None else Smoothing(known.channels.maxima, known.channels.digest())


def _report(checkpoint: Checkpoint, args: argparse.Namespace, prompt: str, errors: Sequence[StageError]) -> dict:
    points = {name: error for stage in errors for name, error in stage.points.items()}
    return {
        "checkpoint": str(checkpoint.directory),
        "precision": args.precision,
        "attention": args.attention,
        "prompt": prompt,
        "stages": {stage.stage: stage.error for stage in errors},
        "layers": {f"{stage.stage}.layers.{i}.*": error for stage in errors for i, error in enumerate(stage.layers)},
        "points": dict(sorted(points.items(), key=lambda item: -item[1])),
    }


def table(errors: Sequence[StageError]) -> str:
    """The stages, and the points that cost most."""
    points = {name: error for stage in errors for name, error in stage.points.items()}
    worst = sorted(points, key=lambda name: -points[name])[:_SHOWN]
    lines = [f"{'relative error of the result':>30}  stage", *(f"{e.error:30.2e}  {e.stage}" for e in errors), ""]
    lines += [f"{'of what its block adds':>30}  point", *(f"{points[name]:30.2e}  {name}" for name in worst)]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    return guard(PROGRAM, lambda: run(args))


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    sys.exit(main())
