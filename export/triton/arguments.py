"""The options of ``python -m export.triton``."""

import argparse
from pathlib import Path

from runtime.backend.choice import BACKENDS
from serving.settings import DEFAULT_SECONDS, DEFAULT_WORK
from serving.tensors import INPUTS


def build_parser(program: str) -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description="Write a model repository that serves a bundle with Triton Inference Server (Python backend).",
    )
    option = parser.add_argument
    option("bundle", type=Path, metavar="BUNDLE", help="bundle directory")
    option("--output", type=Path, required=True, metavar="REPOSITORY", help="directory to write")
    option("--name", default="ideogram4", help="name of the model (default: %(default)s)")
    option("--stream", action="store_true", help="add the model NAME_stream, which sends progress after each step")
    option(
        "--instances",
        type=int,
        default=1,
        metavar="N",
        help="of a model on each GPU, or on the CPU; each loads the whole bundle (default: %(default)s)",
    )
    option(
        "--bundle-path",
        metavar="PATH",
        help="absolute path of the bundle on the server; it is then not copied into the repository",
    )
    option(
        "--inputs",
        nargs="+",
        default=[tensor.name for tensor in INPUTS],
        metavar="NAME",
        help="inputs beside prompt that requests may have; parts of the VAE that none of them needs are not loaded "
        "(default: all)",
    )
    option("--overwrite", action="store_true", help="replace the output if it is such a repository")
    option("--quiet", action="store_true", help="no progress bar and no messages")
    _add_batching(parser.add_argument_group("batching"))
    _add_limits(parser.add_argument_group("limits of a request"))
    _add_loading(parser.add_argument_group("loading"))
    return parser


def _add_batching(group: argparse._ArgumentGroup) -> None:
    option = group.add_argument
    option(
        "--max-batch",
        type=int,
        default=4,
        metavar="N",
        help="prompts of a request; pictures of waiting requests that run together (default: %(default)s)",
    )
    option(
        "--dynamic-batching",
        action="store_true",
        help="run waiting requests together that differ in nothing but seed and number of pictures",
    )
    option(
        "--queue-delay",
        type=int,
        metavar="US",
        help="microseconds to wait for more requests, with --dynamic-batching (default: 0)",
    )
    option(
        "--queue-limit",
        type=int,
        metavar="N",
        help="refuse requests while N are waiting, with --dynamic-batching. With one instance Triton then delays "
        "some by up to half a second: for pictures that take seconds",
    )
    option(
        "--queue-seconds",
        type=float,
        metavar="S",
        help="refuse requests that have waited this long, with --dynamic-batching; the same delay",
    )


def _add_limits(group: argparse._ArgumentGroup) -> None:
    option = group.add_argument
    option(
        "--max-work",
        type=float,
        default=DEFAULT_WORK,
        metavar="N",
        help="refuse requests for more than N million pixels x steps, over all their pictures (default: %(default)g, "
        "which is 20 pictures of 1024 x 1024 in 48 steps)",
    )
    option(
        "--max-seconds",
        type=float,
        default=DEFAULT_SECONDS,
        metavar="S",
        help="stop a request that takes longer than this, behind its step (default: %(default)g)",
    )


def _add_loading(group: argparse._ArgumentGroup) -> None:
    option = group.add_argument
    option("--backend", choices=BACKENDS, default="auto", help="what runs the graphs (default: %(default)s)")
    option(
        "--max-memory",
        type=float,
        metavar="GB",
        help="memory that an instance may take, where several share a GPU, or a machine, and see the same free memory "
        "when they load together: of the GPU for engines, of the machine for ONNX Runtime (default: what is free)",
    )
    option("--threads", type=int, metavar="N", help="CPU threads of an instance (default: one per core)")
    option(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="do not hash the bundle's files, neither now nor when a server loads them",
    )
    option(
        "--self-test",
        action="store_true",
        help="when a server loads the model, compare every graph with what its checkpoint gave at the build; a model "
        "that fails is not loaded, and the server's log has the table",
    )
    option(
        "--no-unload",
        dest="unload",
        action="store_false",
        help="for servers without --model-control-mode=explicit: a model whose engine failed refuses requests "
        "instead of asking to be unloaded",
    )
