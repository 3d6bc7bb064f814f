"""The options of all commands that read a checkpoint."""

import argparse
from pathlib import Path

from model.checkpoint.hub import EXAMPLE


def add_checkpoint_options(parser: argparse.ArgumentParser, default: Path | None = None) -> None:
    """Add ``--checkpoint`` and ``--revision``, the arguments of `model.checkpoint.hub.checkpoint_directory`.

    Args:
        parser: of the command.
        default: the small demo model's directory; None makes the option a required one.
    """
    parser.add_argument(
        "--checkpoint",
        default=default,
        required=default is None,
        metavar="DIR|ID",
        help="checkpoint directory in the original or the diffusers layout, or the id of a model on the Hugging Face "
        f"Hub, such as {EXAMPLE}{' (default: the small demo model)' if default else ''}",
    )
    parser.add_argument(
        "--revision", metavar="REV", help="branch, tag or commit, for a Hub id (default: the main branch)"
    )
