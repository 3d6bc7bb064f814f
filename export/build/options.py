"""The options of ``python -m export.build``."""

import argparse
from pathlib import Path

from calibration.lora_options import add_lora_options
from export.demo_model import DEMO_CHECKPOINT
from export.engine.targets import DEFAULT_TARGETS, TARGETS
from export.graph.precision import BASES, PRECISIONS
from runtime import __version__
from runtime.constants import DEFAULT_BUNDLE

BACKENDS = ("ort", "rtx", "tensorrt")


def build_parser(program: str) -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description="Export an Ideogram 4 checkpoint to a bundle that runs without PyTorch. A build that was killed "
        "goes on where it was when the same command is run again; a stage whose inputs are the same is kept.",
    )
    option = parser.add_argument
    option("--version", action="version", version=f"%(prog)s {__version__}")
    option(
        "--checkpoint",
        type=Path,
        default=DEMO_CHECKPOINT,
        metavar="DIR",
        help="checkpoint directory, original or diffusers layout (default: the small demo model)",
    )
    add_lora_options(parser)
    option(
        "--output",
        type=Path,
        default=Path(DEFAULT_BUNDLE),
        metavar="DIR",
        help="bundle to write (default: %(default)s)",
    )
    option(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="fp8: weights and the blocks' activations; fp8-weight-only: weights; else the type of both "
        "(default: %(default)s)",
    )
    option(
        "--backend",
        nargs="+",
        choices=BACKENDS,
        default=("ort",),
        metavar="BACKEND",
        help="what will run the bundle, one or more: ort (ONNX Runtime), rtx (TensorRT-RTX plans, built without a "
        "GPU), tensorrt (plans for the GPU in this machine) (default: ort)",
    )
    _add_float8(parser.add_argument_group("float8"))
    _add_engines(parser.add_argument_group("engines"))
    option(
        "--weights",
        choices=("copy", "link"),
        default="copy",
        help="link: the bundle's ONNX graphs use the checkpoint's own files, by second names of them in the bundle, "
        "where their bytes are what a graph wants (default: %(default)s)",
    )
    option(
        "--timestep-dtype",
        choices=("float32", "bfloat16"),
        help="round the time to this type (default: float32 for fp32, else bfloat16)",
    )
    option("--overwrite", action="store_true", help="replace the output if it is a bundle")
    option("--fresh", action="store_true", help="build every stage again, whatever was finished before")
    option("--no-verify", dest="verify", action="store_false", help="do not compare recorded checksums of the weights")
    option("--quiet", action="store_true", help="no progress bars and no messages")
    return parser


def _add_float8(group: argparse._ArgumentGroup) -> None:
    option = group.add_argument
    option(
        "--base",
        choices=BASES,
        help="type of what is not float8 in the fp8 precisions (default: fp32 for ort, bf16 for engines)",
    )
    option(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="ranges for --precision fp8, from python -m calibration; the demo model makes its own",
    )
    option(
        "--attention",
        choices=("fp8", "base"),
        help="type of the attention, for --precision fp8 (default: base for ort, fp8 for engines)",
    )
    option(
        "--keep-base",
        nargs="+",
        default=(),
        metavar="PATTERN",
        help="activations that stay in the base type with --precision fp8, such as 'dit_cond.layers.0.*'",
    )


def _add_engines(group: argparse._ArgumentGroup) -> None:
    option = group.add_argument
    option(
        "--target",
        nargs="+",
        default=DEFAULT_TARGETS,
        metavar="SM",
        help=f"GPUs that rtx plans run on: {', '.join(f'{n} ({t.cards})' for n, t in TARGETS.items())} "
        f"(default: {' '.join(DEFAULT_TARGETS)})",
    )
    option("--min-size", type=int, metavar="PX", help="shortest side of a picture (default: the model's)")
    option("--opt-size", type=int, metavar="PX", help="side to tune for (default: the model's default size)")
    option("--max-size", type=int, metavar="PX", help="longest side of a picture (default: the model's)")
    option(
        "--weight-streaming",
        action="store_true",
        help="engines that can keep part of their weights in host memory, for small cards",
    )
    option("--max-batch", type=int, default=1, metavar="N", help="pictures in one call (default: %(default)s)")
