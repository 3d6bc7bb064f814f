"""The options that say what runs a bundle, shared by the commands."""

import argparse

from runtime.backend.choice import BACKENDS
from runtime.backend.machine import DEVICES
from runtime.tensorrt.memory_plan import MEMORY


def add_backend_options(parser: argparse._ActionsContainer) -> None:
    """Add ``--backend``, ``--device``, ``--memory`` and ``--threads``."""
    add = parser.add_argument
    add(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="what runs the graphs: ONNX Runtime, TensorRT-RTX or TensorRT engines; auto takes engines where the "
        "bundle has them for this machine (default: %(default)s)",
    )
    add(
        "--device",
        default="auto",
        metavar="DEV",
        help=f"{DEVICES}; auto: the first GPU for engines, else the CPU (default: %(default)s)",
    )
    add(
        "--memory",
        choices=MEMORY,
        default="auto",
        help="engines that are on the GPU: all, the running step's, or what fits (default: %(default)s)",
    )
    add("--threads", type=int, metavar="N", help="CPU threads of ONNX Runtime (default: one per core)")
