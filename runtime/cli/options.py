"""The options of ``trt-generate``, in groups. What they mean together is checked in `runtime.cli.main`."""

import argparse
from pathlib import Path

from runtime import __version__
from runtime.cli.backend_options import add_backend_options
from runtime.cli.image_options import add_image_options
from runtime.constants import BUNDLE_VARIABLE, DEFAULT_BUNDLE
from runtime.plan import UNCONDITIONAL
from runtime.prompt.caption import CHECKS
from runtime.sampling.schedule import DEFAULT_GUIDANCE, DEFAULT_MU, DEFAULT_STD, PRESETS

PROGRAM = "trt-generate"
DEFAULT_OUTPUT = Path("ideogram4.png")


def build_parser() -> argparse.ArgumentParser:
    """The command's options. Each group of them has its own function."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Generate pictures with an Ideogram 4 bundle.",
        epilog=f"presets: {', '.join(PRESETS)}. A preset's guidance, mu and std can be overridden one by one; without "
        "a preset and without --steps the bundle's default preset is used.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    for add_group in (_add_prompt, _add_output, _add_sampling, add_image_options, _add_backend):
        add_group(parser)
    return parser


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--bundle",
        type=Path,
        metavar="DIR",
        help=f"bundle directory (default: ${BUNDLE_VARIABLE}, else {DEFAULT_BUNDLE})",
    )
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--prompt", metavar="TEXT", help="plain text, or a JSON caption used as it is written")
    text.add_argument(
        "--caption",
        metavar="FILE",
        help="JSON file with an Ideogram 4 caption, written as one wishes: the model gets it on one line",
    )
    text.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="many prompts: one a line, or JSON objects when FILE ends in .jsonl; - for standard input",
    )
    add(
        "--check-caption",
        choices=CHECKS,
        default="error",
        help="what a caption that is not as the model was trained leads to (default: %(default)s)",
    )
    add("--wrap", action="store_true", help="make a minimal caption of plain text")


def _add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--output",
        type=Path,
        default=DEFAULT_OUTPUT,
        metavar="FILE",
        help="PNG to write (default: %(default)s); several get -0, -1, … before the suffix, those of a prompt file "
        "the line's number",
    )
    add("--overwrite", action="store_true", help="replace the output if it exists")
    add("--layout", type=Path, metavar="FILE", help="draw the caption's boxes and texts into this PNG first")
    add(
        "--layout-font",
        type=Path,
        metavar="FILE",
        help="TrueType font for it (default: the one at hand that has its letters)",
    )
    add("--dry-run", action="store_true", help="check everything and draw the layout, but make no picture")
    add("--strict", action="store_true", help="with a prompt file, make nothing if a line is bad; stop at a failure")
    add("--json", action="store_true", help="print what was used as JSON on standard output")
    add("--quiet", action="store_true", help="no progress bar and no messages")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--width", type=int, metavar="PX", help="multiple of 16 (default: the bundle's default size)")
    add("--height", type=int, metavar="PX", help="multiple of 16 (default: the bundle's default size)")
    add("--preset", metavar="NAME", help="steps, guidance and schedule by name; see below")
    add(
        "--steps",
        type=int,
        metavar="N",
        help="number of steps instead of a preset, with "
        f"guidance {DEFAULT_GUIDANCE:g}, mu {DEFAULT_MU:g} and std {DEFAULT_STD:g} unless given",
    )
    guidance = parser.add_mutually_exclusive_group()
    guidance.add_argument("--guidance", type=float, metavar="G", help="guidance weight for every step; 1 is none")
    guidance.add_argument("--guidance-schedule", metavar="SPEC", help="weights in order, such as 7x45,3x3")
    add("--mu", type=float, metavar="X", help="mean of the logit-normal schedule at 512x512")
    add("--std", type=float, metavar="X", help="standard deviation of the schedule")
    add("--seed", type=int, metavar="N", help="of the start noise, the same as PyTorch's CPU seed (default: random)")
    add("--num-images", type=int, default=1, metavar="N", help="pictures for the prompt (default: %(default)s)")
    add(
        "--unconditional",
        choices=UNCONDITIONAL,
        default="graph",
        help="where guidance takes the unconditional velocity from: its own graph, the conditional graph without "
        "text, or off = no guidance (default: %(default)s)",
    )


def _add_backend(parser: argparse.ArgumentParser) -> None:
    add_backend_options(parser)
    add = parser.add_argument
    add("--devices", metavar="A,B", help="two GPUs, as in 0,1: each transformer has its own")
    add("--no-verify", dest="verify", action="store_false", help="do not hash the bundle's files before loading")
