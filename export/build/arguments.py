"""The command line of ``python -m export.build``: an option for each field of `BuildOptions`."""

import argparse
from pathlib import Path
from typing import Any

from calibration.checkpoint_options import add_checkpoint_options
from calibration.lora_options import add_lora_options
from export.build.options import ATTENTIONS, BACKENDS, DEFAULTS, TIMESTEP_DTYPES, WEIGHTS, BuildOptions
from export.engine.targets import DEFAULT_TARGETS, TARGETS
from export.graph.precision import ACTIVATIONS, BASES, PRECISIONS
from runtime import __version__
from runtime.sampling.schedule import PRESETS


def read_options(args: argparse.Namespace) -> BuildOptions:
    """The options of a parsed command line; ValueError as for `BuildOptions`."""
    return BuildOptions(**{name: tuple(v) if isinstance(v, list) else v for name, v in vars(args).items()})


def build_parser(program: str) -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description="Export an Ideogram 4 checkpoint to a bundle that runs without PyTorch. Re-running the command "
        "resumes an interrupted build; a stage whose inputs have not changed is kept.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    add_checkpoint_options(parser, DEFAULTS["checkpoint"])
    add_lora_options(parser)
    _add_result(parser)
    _add_quantization(parser.add_argument_group("quantization"))
    _add_engines(parser.add_argument_group("engines"))
    _add_behaviour(parser)
    return parser


def _add(group: argparse._ActionsContainer, field: str, **settings: Any) -> None:
    """Add the option of a field, with the field's name and default; KeyError if `BuildOptions` has no such field."""
    group.add_argument(f"--{field.replace('_', '-')}", dest=field, default=DEFAULTS[field], **settings)


def _add_result(parser: argparse.ArgumentParser) -> None:
    _add(parser, "output", type=Path, metavar="DIR", help="bundle to write (default: %(default)s)")
    _add(
        parser,
        "precision",
        choices=PRECISIONS,
        help="fp8, int8: weights and activations of the blocks' products in 8 bits (fp8 for cards from RTX 40 on, int8 "
        "for all cards and for CPUs); fp8-weight-only: weights alone; the others: the type of both (default: "
        "%(default)s)",
    )
    _add(
        parser,
        "backend",
        nargs="+",
        choices=BACKENDS,
        metavar="BACKEND",
        help="what will run the bundle, one or more: ort (ONNX Runtime), rtx (TensorRT-RTX plans, built without a "
        "GPU), tensorrt (plans for the GPU in this machine) (default: ort)",
    )
    _add(
        parser,
        "weights",
        choices=WEIGHTS,
        help="link: the bundle shares the checkpoint's own files, by hard links, where their bytes are what an ONNX "
        "graph wants (default: %(default)s)",
    )
    _add(
        parser,
        "timestep_dtype",
        choices=TIMESTEP_DTYPES,
        help="round the time to this type (default: float32 for fp32, otherwise bfloat16)",
    )
    _add(
        parser,
        "default_preset",
        choices=tuple(PRESETS),
        metavar="NAME",
        help="preset that the bundle uses where a request names none (default: the model's)",
    )
    _add(
        parser,
        "default_guidance",
        type=float,
        metavar="G",
        help="guidance weight that the bundle uses where a request names none (default: the preset's)",
    )


def _add_quantization(group: argparse._ArgumentGroup) -> None:
    _add(
        group,
        "base",
        choices=BASES,
        help="type of what is not in 8 bits in the fp8 precisions and int8 (default: fp32 for ort, bf16 for engines)",
    )
    _add(
        group,
        "calibration",
        type=Path,
        metavar="FILE",
        help="from python -m calibration: channel maxima for --precision int8 (default: measured here, which takes as "
        "long as a few steps), or ranges for --activations static",
    )
    _add(
        group,
        "activations",
        choices=ACTIVATIONS,
        help="token: one scale for each token, found while running, without calibration; static: for fp8, one scale "
        "for each tensor, from a ranges file (default: token)",
    )
    _add(
        group,
        "attention",
        choices=ATTENTIONS,
        help="base: attention in the base type; fp8: in float8, for --precision fp8, faster and less exact; "
        "decomposed: for models whose heads TensorRT has no fused kernel for (default: %(default)s)",
    )
    _add(
        group,
        "keep_base",
        nargs="+",
        metavar="PATTERN",
        help="activations that stay in the base type with --precision fp8 or int8, such as 'dit_cond.layers.0.*'",
    )


def _add_engines(group: argparse._ArgumentGroup) -> None:
    _add(
        group,
        "target",
        nargs="+",
        metavar="SM",
        help=f"GPUs that rtx plans run on: {', '.join(f'{n} ({t.cards})' for n, t in TARGETS.items())} "
        f"(default: {' '.join(DEFAULT_TARGETS)})",
    )
    _add(group, "min_size", type=int, metavar="PX", help="shortest side of a picture (default: the model's)")
    _add(group, "max_size", type=int, metavar="PX", help="longest side of a picture (default: the model's)")
    group.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar="PX[:MIN..MAX][,text=TOKENS[:MIN..MAX]]",
        help="sizes that the engines have kernels for: the side, and the number of text tokens, to tune for, and the "
        "range around each; once for each use, such as --profile 512:256..768 --profile 1024. A picture runs in the "
        "profile that holds its size and whose best size is nearest (default: one for the model's default size, one "
        "for half of it)",
    )
    _add(
        group,
        "opt_size",
        type=int,
        metavar="PX",
        help="side to tune for, with one profile for all sizes: the same as --profile PX",
    )
    _add(group, "max_batch", type=int, metavar="N", help="pictures in one call (default: %(default)s)")
    _add(
        group,
        "weight_streaming",
        action="store_true",
        help="engines that can keep part of their weights in host memory, for small cards",
    )
    _add(
        group,
        "strict_audit",
        action="store_true",
        help="refuse an engine whose kernels are not what was asked for (default: warn, and name them in the report)",
    )


def _add_behaviour(parser: argparse.ArgumentParser) -> None:
    _add(parser, "overwrite", action="store_true", help="replace the output if it is a bundle")
    _add(parser, "fresh", action="store_true", help="rebuild every stage, whatever was finished before")
    parser.add_argument(
        "--no-compare",
        dest="compare",
        action="store_false",
        help="do not compare the stages in 8 bits with the same unquantized, which the report is about",
    )
    parser.add_argument(
        "--no-self-test",
        dest="self_test",
        action="store_false",
        help="leave out what trt-generate --self-test compares a machine's results with",
    )
    parser.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="do not compare the weights with the checksums that came with them",
    )
    _add(parser, "quiet", action="store_true", help="no progress and no messages")
