"""The options of ``trt-generate`` for pictures to start from, cheaper guidance, tiles and previews."""

import argparse
from collections.abc import Collection
from pathlib import Path

from runtime.atomic_files import PendingFiles
from runtime.bundle.manifest import Manifest
from runtime.image.init_image import STRENGTH
from runtime.image.inpaint import FEATHER
from runtime.image.preview import EVERY, PreviewFile
from runtime.image.resize import FITS
from runtime.plan import Plan
from runtime.sampling.guidance import UnconditionalPasses, parse_interval


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Add them in groups of their own."""
    start = parser.add_argument_group("image-to-image and inpainting")
    start.add_argument("--image", type=Path, metavar="FILE", help="picture to start from; its size is the default one")
    start.add_argument(
        "--strength",
        type=float,
        metavar="S",
        help="from 0, the picture itself, to 1, almost nothing of it; the number of steps stays the same "
        f"(default: {STRENGTH:g}, with --mask 1)",
    )
    start.add_argument("--fit", choices=FITS, help="what to do with a picture of another aspect ratio or an odd size")
    start.add_argument(
        "--mask",
        type=Path,
        metavar="FILE",
        help="black-and-white picture of the size of --image: white is painted anew, black stays",
    )
    start.add_argument(
        "--mask-feather",
        type=int,
        metavar="PX",
        help=f"pixels around the mask over which the new part fades into the old (default: {FEATHER})",
    )
    cheap = parser.add_argument_group("cheaper guidance (changes the picture)")
    cheap.add_argument(
        "--guidance-interval",
        metavar="A:B",
        help="guidance only at times from A to B, where 0 is noise and 1 the picture",
    )
    cheap.add_argument(
        "--uncond-every",
        type=int,
        default=1,
        metavar="K",
        help="unconditional pass at every K-th guided step only, its velocity reused between (default: 1)",
    )
    large = parser.add_argument_group("large pictures and previews")
    large.add_argument(
        "--vae-tile",
        type=_tile,
        default="auto",
        metavar="auto|off|PX",
        help="decode in tiles of this many pixels; auto: above 1152x1152 (default: auto)",
    )
    large.add_argument("--preview", type=Path, metavar="FILE", help="PNG that shows the picture while it is made")
    large.add_argument(
        "--preview-every", type=int, metavar="N", help=f"steps from one preview to the next (default: {EVERY})"
    )


def passes_of(args: argparse.Namespace) -> UnconditionalPasses:
    """When the unconditional pass runs; ValueError for a wrong interval or number."""
    interval = None if args.guidance_interval is None else parse_interval(args.guidance_interval)
    return UnconditionalPasses(interval, args.uncond_every)


def check_preview(args: argparse.Namespace, manifest: Manifest, outputs: Collection[Path]) -> None:
    """Raise unless the previews that are asked for can be written.

    Raises:
        FileExistsError: the file may not be overwritten.
        FileNotFoundError, PermissionError: its directory does not exist or cannot be written.
        ValueError: it is one of the outputs, or the bundle was made without the colours of its latents.
    """
    if args.preview is None:
        if args.preview_every is not None:
            raise ValueError("--preview-every needs --preview FILE")
        return
    if manifest.preview is None:
        raise ValueError("this bundle was built without preview colours; build it again, or leave out --preview")
    if args.preview_every is not None and args.preview_every < 1:
        raise ValueError(f"--preview-every is {args.preview_every}, wanted 1 or more steps")
    if args.preview.absolute() in [file.absolute() for file in outputs]:
        raise ValueError(f"--preview {args.preview} is the output as well, wanted another file")
    with PendingFiles([args.preview], args.overwrite):
        pass  # it can be written


def preview_of(args: argparse.Namespace, manifest: Manifest, plan: Plan) -> PreviewFile | None:
    """The file for previews of a plan, None if none is asked for; `check_preview` comes first."""
    if args.preview is None or manifest.preview is None:
        return None
    every = EVERY if args.preview_every is None else args.preview_every
    return PreviewFile(args.preview, manifest.preview, plan.grid, plan.steps, every)


def _tile(text: str) -> str | int:
    return int(text) if text.isdecimal() else text
