"""The command ``python -m calibration``: a checkpoint and prompts in, a file of activation ranges out."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from calibration.checkpoint_options import add_checkpoint_options
from calibration.lora_options import add_lora_options
from calibration.prompts import DEFAULT_PROMPTS, read_prompts
from calibration.ranges import ALGORITHMS, check_algorithm, write_ranges
from calibration.record import DEFAULT_ALGORITHM, DEFAULT_PERCENTILE, calibrate
from calibration.reference import DEVICES, check_device, prompt_encoder
from calibration.state import state_file
from model.checkpoint.directory import open_checkpoint
from model.checkpoint.hub import checkpoint_directory
from model.checkpoint.lora import with_loras
from runtime.atomic_files import check_outputs
from runtime.console import guard
from runtime.sampling.schedule import PRESETS

PROGRAM = "calibration"


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}",
        description="Measure the activation ranges that a float8 export of an Ideogram 4 checkpoint needs. Progress is "
        "saved after each prompt; re-running the command resumes an interrupted calibration.",
        epilog=f"presets: {', '.join(PRESETS)}",
    )
    add_checkpoint_options(parser)
    add_lora_options(parser)
    _add_sampling(parser)
    _add_result(parser)
    return parser


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--prompts",
        type=Path,
        default=DEFAULT_PROMPTS,
        metavar="FILE",
        help="UTF-8, one prompt per line, # for comments (default: calibration/prompts.txt)",
    )
    add("--limit", type=int, metavar="N", help="use the first N prompts only")
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--preset", metavar="NAME", help="steps, guidance and schedule (default: the model's)")
    steps.add_argument("--steps", type=int, metavar="N", help="number of steps instead of a preset")
    add("--width", type=int, metavar="PX", help="multiple of 16 (default: the model's default size)")
    add("--height", type=int, metavar="PX", help="multiple of 16 (default: the model's default size)")
    add(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="of the first prompt's noise; each further prompt has the next one (default: %(default)s)",
    )
    add("--device", choices=DEVICES, default="cpu", help="what runs the model (default: %(default)s)")


def _add_result(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--algorithm",
        choices=ALGORITHMS,
        default=DEFAULT_ALGORITHM,
        help="which ranges to use; the file holds those of all algorithms (default: %(default)s)",
    )
    add(
        "--percentile",
        type=float,
        default=DEFAULT_PERCENTILE,
        metavar="P",
        help="of the magnitudes, for --algorithm percentile (default: %(default)s)",
    )
    add("--output", type=Path, required=True, metavar="FILE", help="file to write, such as ranges.json")
    add("--overwrite", action="store_true", help="replace the output if it exists")
    add("--quiet", action="store_true", help="no progress and no messages")


def run(args: argparse.Namespace) -> None:
    """Do what the options say. Everything that can be wrong with them is found before weights are loaded."""
    started = time.perf_counter()
    check_outputs([args.output], args.overwrite)
    check_algorithm(args.algorithm, args.percentile)
    check_device(args.device)
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit is {args.limit}, wanted at least 1")
    directory = checkpoint_directory(args.checkpoint, args.revision, args.quiet)
    checkpoint = with_loras(open_checkpoint(directory), args.lora, args.lora_target)
    prompts = read_prompts(args.prompts, prompt_encoder(checkpoint))[: args.limit]
    state = state_file(args.output)
    ranges = calibrate(
        checkpoint,
        prompts,
        preset=args.preset,
        steps=args.steps,
        width=args.width,
        height=args.height,
        algorithm=args.algorithm,
        percentile=args.percentile,
        device=args.device,
        seed=args.seed,
        state=state,
        quiet=args.quiet,
    )
    write_ranges(ranges, args.output)
    state.unlink(missing_ok=True)
    if not args.quiet:
        print(
            f"wrote {args.output} ({len(ranges.tensors)} tensors, {len(prompts)} prompts, {ranges.steps} steps each) "
            f"in {time.perf_counter() - started:.1f} s",
            file=sys.stderr,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    return guard(PROGRAM, lambda: run(args))
