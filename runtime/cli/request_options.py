"""The options of ``trt-generate`` that are fields of a request: named, typed and described as `runtime.Request` is.

An option that is not given is missing from the parsed arguments, so that `Request` alone knows the defaults.
"""

import argparse
from typing import Any

from runtime.image.init_image import STRENGTH
from runtime.image.inpaint import FEATHER
from runtime.request import INTEGER, INTERVAL, KINDS, NUMBER, PICTURE, TILE, Request, descriptions
from runtime.sampling.schedule import DEFAULT_GUIDANCE, DEFAULT_MU, DEFAULT_STD, PRESETS

GROUPS = {
    "what to make": ("negative_prompt", "width", "height", "seed", "num_images"),
    "steps and guidance": ("preset", "steps", "guidance", "mu", "std", "unconditional"),
    "image-to-image and inpainting": ("image", "strength", "fit", "mask", "mask_feather"),
    "cheaper guidance (changes the picture)": ("guidance_interval", "uncond_every"),
    "large pictures": ("vae_tile",),
}
"""Fields by heading. ``prompt`` has options of its own: a text, a caption file, or a file of prompts."""
_METAVARS = {INTEGER: "N", NUMBER: "X", INTERVAL: "A:B", PICTURE: "FILE", TILE: "auto|off|PX"}
_OWN_METAVARS = {"width": "PX", "height": "PX", "mask_feather": "PX", "uncond_every": "K", "preset": "NAME"}
_NOTES = {
    "preset": f"one of {', '.join(PRESETS)}; default: the bundle's",
    "steps": f"with guidance {DEFAULT_GUIDANCE:g}, mu {DEFAULT_MU:g} and std {DEFAULT_STD:g} unless given",
    "strength": f"default: {STRENGTH:g}, with --mask 1; the number of steps stays the same",
    "mask_feather": f"default: {FEATHER}",
    "num_images": f"default: {Request.num_images}",
    "uncond_every": f"default: {Request.uncond_every}",
    "unconditional": "default: graph",
    "vae_tile": f"default: {Request.vae_tile}",
}
"""What an option's help says beside the field's description."""


def add_request_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for every field but the prompt."""
    about = descriptions()
    for heading, names in GROUPS.items():
        group = parser.add_argument_group(heading)
        for name in names:
            note = f" ({_NOTES[name]})" if name in _NOTES else ""
            if name == "guidance":
                _add_guidance(group, about.get(name, ""))
            else:
                _add(group, name, about.get(name, "") + note)


def given_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The fields that the command line sets, but for the prompt."""
    names = [name for group in GROUPS.values() for name in group]
    fields = {name: getattr(args, name) for name in names if hasattr(args, name)}
    if hasattr(args, "guidance_schedule"):
        fields["guidance"] = args.guidance_schedule
    return fields


def _add(group: argparse._ArgumentGroup, name: str, text: str) -> None:
    kind = KINDS[name]
    group.add_argument(
        f"--{name.replace('_', '-')}",
        dest=name,
        type={INTEGER: int, NUMBER: float}.get(kind, str),
        choices=kind.choices or None,
        metavar=None if kind.choices else _OWN_METAVARS.get(name, _METAVARS.get(kind, "TEXT")),
        default=argparse.SUPPRESS,
        help=text.replace("%", "%%"),
    )


def _add_guidance(group: argparse._ArgumentGroup, text: str) -> None:
    """One weight, or a schedule; each has an option, as only one of them is a number."""
    one, _, each = text.partition("; or ")
    exclusive = group.add_mutually_exclusive_group()
    exclusive.add_argument("--guidance", type=float, metavar="G", default=argparse.SUPPRESS, help=one)
    exclusive.add_argument(
        "--guidance-schedule", metavar="SPEC", default=argparse.SUPPRESS, help=f"{each}, in order, such as 7x45,3x3"
    )
