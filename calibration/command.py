"""The command ``python -m calibration``: a checkpoint and prompts in, a file of measurements out."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from calibration.channels.file import write_channels
from calibration.channels.record import PROMPTS, STEPS, measure_channels
from calibration.checkpoint_options import add_checkpoint_options
from calibration.lora_options import add_lora_options
from calibration.prompts import DEFAULT_PROMPTS, read_prompts, spread
from calibration.reference import DEVICES, check_device, prompt_encoder
from calibration.static.ranges import ALGORITHMS, check_algorithm, write_ranges
from calibration.static.record import DEFAULT_ALGORITHM, DEFAULT_PERCENTILE, calibrate
from calibration.static.state import state_file
from model.checkpoint.directory import Checkpoint, open_checkpoint
from model.checkpoint.hub import checkpoint_directory
from model.checkpoint.lora import with_loras
from runtime.atomic_files import check_outputs, remove_leftovers
from runtime.console import guard
from runtime.sampling.schedule import PRESETS

PROGRAM = "calibration"
MEASURES = ("channels", "ranges")


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {PROGRAM}",
        description="Measure the activations of an Ideogram 4 checkpoint: the largest magnitude of each channel, which "
        "int8 needs (the build measures it by itself, too), or the static ranges of --activations static. Progress is "
        "saved; re-running the command resumes an interrupted calibration.",
        epilog=f"presets: {', '.join(PRESETS)}",
    )
    parser.add_argument(
        "--measure",
        choices=MEASURES,
        default="channels",
        help="channels: channel maxima for --precision int8, in little memory; ranges: static ranges for --precision "
        "fp8 --activations static, with both transformers in float32 in memory (default: %(default)s)",
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
    add(
        "--limit",
        type=int,
        metavar="N",
        help=f"use N prompts only: spread over the file for channels (default: {PROMPTS}), the first ones for ranges "
        "(default: all)",
    )
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument(
        "--preset", metavar="NAME", help="for ranges: steps, guidance and schedule (default: the model's)"
    )
    steps.add_argument(
        "--steps", type=int, metavar="N", help=f"number of steps (default: {STEPS} for channels, a preset for ranges)"
    )
    add("--width", type=int, metavar="PX", help="multiple of 16 (default: 256 for channels, the model's for ranges)")
    add("--height", type=int, metavar="PX", help="multiple of 16 (default: as for --width)")
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
    add(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to write, such as channels.safetensors or ranges.json",
    )
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
    if args.preset is not None and args.measure == "channels":
        raise ValueError("--preset goes with --measure ranges; channels take --steps")
    directory = checkpoint_directory(args.checkpoint, args.revision, args.quiet)
    checkpoint = with_loras(open_checkpoint(directory), args.lora, args.lora_target)
    prompts = read_prompts(args.prompts, prompt_encoder(checkpoint))
    state = state_file(args.output)
    remove_leftovers([args.output, state])
    measure = _channels if args.measure == "channels" else _ranges
    what = measure(args, checkpoint, prompts, state)
    state.unlink(missing_ok=True)
    if not args.quiet:
        print(f"wrote {args.output} ({what}) in {time.perf_counter() - started:.1f} s", file=sys.stderr)


def _channels(args: argparse.Namespace, checkpoint: Checkpoint, prompts: list[str], state: Path) -> str:
    channels = measure_channels(
        checkpoint,
        spread(prompts, args.limit or PROMPTS),
        steps=STEPS if args.steps is None else args.steps,
        width=args.width,
        height=args.height,
        device=args.device,
        seed=args.seed,
        state=state,
        quiet=args.quiet,
    )
    write_channels(channels, args.output)
    measured = channels.measured
    return f"channels of {len(channels.maxima)} tensors, {measured.prompts.count} prompts, {measured.steps} steps each"


def _ranges(args: argparse.Namespace, checkpoint: Checkpoint, prompts: list[str], state: Path) -> str:
    ranges = calibrate(
        checkpoint,
        prompts if args.limit is None else prompts[: args.limit],
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
    return f"{len(ranges.tensors)} tensors, {ranges.prompts.count} prompts, {ranges.steps} steps each"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    return guard(PROGRAM, lambda: run(args))
