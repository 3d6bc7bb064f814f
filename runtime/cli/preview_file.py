"""The preview file that ``--preview`` asks for."""

import argparse
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from runtime.atomic_files import check_outputs, remove_leftovers
from runtime.bundle.manifest import Manifest
from runtime.console import describe
from runtime.errors import RequestError
from runtime.image.output_files import check_suffix
from runtime.image.preview import EVERY, PreviewFile
from runtime.plan import Plan


def check_preview(args: argparse.Namespace, manifest: Manifest, outputs: Collection[Path]) -> None:
    """Raise unless the previews that are asked for can be written.

    Raises:
        FileExistsError: the file may not be overwritten.
        FileNotFoundError, PermissionError: its directory does not exist or cannot be written.
        RequestError: its suffix names no format, it is one of the outputs, or the bundle was made without the colours
            of its latents.
    """
    if args.preview is None:
        if args.preview_every is not None:
            raise RequestError("--preview-every needs --preview FILE")
        return
    if manifest.preview is None:
        raise RequestError("this bundle was built without preview colours; build it again, or leave out --preview")
    if args.preview_every is not None and args.preview_every < 1:
        raise RequestError(f"--preview-every is {args.preview_every}, wanted 1 or more steps")
    if args.preview.absolute() in [file.absolute() for file in outputs]:
        raise RequestError(f"--preview {args.preview} is the output as well, wanted another file")
    check_outputs([args.preview], args.overwrite)
    remove_leftovers([args.preview])
    check_suffix(args.preview)


class Previews:
    """Writes previews as long as it can. One that cannot be written is told, and the picture goes on without more."""

    def __init__(self, file: PreviewFile, warn: Callable[[str], None]) -> None:
        self.file, self.warn, self.working = file, warn, True

    def __call__(self, done: int, total: int, latents: np.ndarray) -> None:
        """Called after each step."""
        if not self.working:
            return
        try:
            self.file(done, total, latents)
        except OSError as error:
            self.working = False
            self.warn(f"no more previews: {describe(error)}")


def preview_of(
    args: argparse.Namespace, manifest: Manifest, plan: Plan, warn: Callable[[str], None]
) -> Previews | None:
    """What writes the previews of a plan, None if none are asked for; `check_preview` comes first."""
    if args.preview is None or manifest.preview is None:
        return None
    every = EVERY if args.preview_every is None else args.preview_every
    return Previews(PreviewFile(args.preview, manifest.preview, plan.grid, plan.steps, every), warn)
