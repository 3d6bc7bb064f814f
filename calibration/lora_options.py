"""The options of all commands that fold LoRA adapters into a checkpoint."""

import argparse

from model.checkpoint.lora import TARGETS


def add_lora_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--lora`` and ``--lora-target``, the arguments of `model.checkpoint.lora.with_loras`."""
    parser.add_argument(
        "--lora",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE[:SCALE]",
        help="LoRA adapters to fold into the transformer, and how strongly (default: 1)",
    )
    parser.add_argument(
        "--lora-target",
        choices=TARGETS,
        default="cond",
        help="transformers that the adapters go into (default: %(default)s, the conditional one)",
    )
