"""The options of ``trt-generate``, in groups. What they mean together is checked in `runtime.cli.main`."""

import argparse
from pathlib import Path

from runtime import __version__
from runtime.cli.backend_options import add_backend_options
from runtime.cli.request_options import add_request_options
from runtime.constants import BUNDLE_VARIABLE, DEFAULT_BUNDLE
from runtime.image.preview import EVERY
from runtime.loading import VERIFY
from runtime.prompt.caption import CHECKS

PROGRAM = "trt-generate"
DEFAULT_OUTPUT = Path("ideogram4.png")


def build_parser() -> argparse.ArgumentParser:
    """The command's options. Each group of them has its own function."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Generate pictures with an Ideogram 4 bundle.",
        epilog="A preset's guidance, mu and std can be overridden one by one.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _add_prompt(parser)
    _add_output(parser.add_argument_group("output"))
    add_request_options(parser)
    _add_preview(parser.add_argument_group("previews"))
    _add_backend(parser.add_argument_group("backend"))
    return parser


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help=f"bundle directory (default: ${BUNDLE_VARIABLE}, else {DEFAULT_BUNDLE})",
    )
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--prompt", metavar="TEXT", help="plain text, or a JSON caption used exactly as written")
    text.add_argument(
        "--caption",
        metavar="FILE",
        help="JSON file with an Ideogram 4 caption, in any formatting; minified for the model",
    )
    text.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="many prompts: one per line, or JSON objects if FILE ends in .jsonl; - for standard input",
    )
    text.add_argument(
        "--self-test",
        action="store_true",
        help="make no picture for keeping, but compare every graph with what its checkpoint gave when the bundle was "
        "built",
    )
    parser.add_argument(
        "--check-caption",
        choices=CHECKS,
        default="error",
        help="what to do about a caption that does not follow the format the model was trained on "
        "(default: %(default)s)",
    )
    parser.add_argument("--wrap", action="store_true", help="wrap plain text into a minimal caption")


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--output",
        type=Path,
        default=DEFAULT_OUTPUT,
        metavar="FILE",
        help="PNG, JPEG or WebP file to write, as the suffix says (default: %(default)s); several pictures get -0, -1, "
        "… before the suffix, those of a prompt file the line's number",
    )
    add("--overwrite", action="store_true", help="replace existing output")
    add("--layout", type=Path, metavar="FILE", help="first draw the caption's boxes and texts into this picture")
    add(
        "--layout-font",
        type=Path,
        metavar="FILE",
        help="TrueType font for the layout (default: the installed one that covers its letters)",
    )
    add("--dry-run", action="store_true", help="check everything and draw the layout, but generate nothing")
    add(
        "--strict",
        action="store_true",
        help="with a prompt file, generate nothing if any line is bad, and stop at the first failure",
    )
    add("--json", action="store_true", help="print the settings used as JSON on standard output")
    add("--quiet", action="store_true", help="no progress bar and no messages")


def _add_preview(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--preview", type=Path, metavar="FILE", help="picture that shows the picture as it emerges")
    group.add_argument("--preview-every", type=int, metavar="N", help=f"steps between previews (default: {EVERY})")


def _add_backend(group: argparse._ArgumentGroup) -> None:
    add_backend_options(group)
    group.add_argument("--devices", metavar="A,B", help="two GPUs, such as 0,1: one for each transformer")
    group.add_argument(
        "--verify",
        choices=VERIFY,
        default="auto",
        help="how the bundle's files are checked before loading: the hashes of those that are used, unless they were "
        "verified before and have not changed since; the hashes of all; or only sizes (default: %(default)s)",
    )
