"""Valid files to begin with: a tiny checkpoint with random weights, and its bundle."""

from pathlib import Path

from export.build.command import build
from export.build.options import BuildOptions
from scripts import make_checkpoint
from scripts.fuzz.case import World


def make_world(folder: Path) -> World:
    """Write checkpoint and bundle into `folder`: a minute, or a second where the graphs were traced before."""
    checkpoint, bundle = folder / "checkpoint", folder / "bundle"
    arguments = ["--size", "tiny", "--quiet", "--output", str(checkpoint)]
    if make_checkpoint.main(arguments) != 0:
        raise RuntimeError("scripts.make_checkpoint failed; its message is above")
    build(BuildOptions(checkpoint=checkpoint, output=bundle, quiet=True))
    return World(bundle, checkpoint)
