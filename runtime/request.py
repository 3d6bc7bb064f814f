"""One picture request: the only list of what a caller can ask for.

`Pipeline.generate`, the options of ``trt-generate``, the lines of a JSONL file and Triton's inputs all derive from
`Request`: names, types and descriptions are read from it, and its checks are theirs. What depends on the bundle, and
what fields mean together, is checked by `runtime.plan.make_plan`.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
from PIL import Image

from runtime.errors import RequestError, shown
from runtime.image.files import decode_rgb, rgb_array, to_mask
from runtime.image.inpaint import MAX_FEATHER
from runtime.image.resize import FITS
from runtime.prompt.caption import Caption
from runtime.prompt.tokens import check_length
from runtime.sampling.guidance import UnconditionalPasses, parse_interval
from runtime.sampling.noise import SEED_LIMIT
from runtime.sampling.schedule import check_number, check_preset, check_steps, parse_guidance

MAX_IMAGES = 64
UNCONDITIONAL = ("graph", "conditional", "off")
"""Where guidance takes the unconditional velocity from: the unconditional transformer, the conditional one on image
tokens alone (as DiffSynth-Studio does when the other is absent), or nowhere, which means guidance 1."""

Weights = float | tuple[float, ...]
Interval = tuple[float, float]
Picture = Path | np.ndarray
Tile = int | str


@dataclass(frozen=True)
class Request:
    """A request for pictures. None stands for the bundle's default.

    Values are taken as they come: numpy scalars as numbers, a `Caption` or `PIL.Image` as itself, ``7x45,3x3`` and
    ``0.1:0.8`` as schedule and interval. Requests that hold pixels cannot be compared with ``==``.

    Attributes:
        prompt: plain text, or a JSON caption that the model reads exactly as written; at most 65536 bytes
        negative_prompt: what should not appear, at most 65536 bytes; takes the place of the unconditional pass, so it
            needs guidance
        width: pixels, a multiple of 16; default: the image's width, else the bundle's default size
        height: pixels, a multiple of 16; default: the image's height, else the bundle's default size
        preset: steps, guidance and schedule by name
        steps: number of steps, 1 to 1000, instead of a preset
        guidance: guidance weight for every step, 1 for none; or one weight for each step
        mu: mean of the logit-normal schedule at 512x512
        std: standard deviation of the schedule, above 0
        guidance_interval: guidance only at times from A to B, where 0 is noise and 1 the picture
        uncond_every: run the unconditional pass at every K-th guided step only and reuse its velocity between
        unconditional: where guidance takes the unconditional velocity from: its own graph, the conditional graph
            without text, or off for no guidance
        seed: seed of the start noise, 0 to 2**64 - 1, equal to PyTorch's CPU seed; default: random
        num_images: number of pictures, 1 to 64, from one draw of noise
        image: picture to start from
        strength: how far to take the image back to noise, from 0, the image itself, to 1, almost nothing of it
        fit: what to do with an image of another aspect ratio or an odd size
        mask: black-and-white picture of the image's size: white is repainted, black is kept
        mask_feather: pixels around the mask over which the new part fades into the old, 0 to 256
        vae_tile: decode in tiles of this many pixels; auto: only above 1152x1152 pixels; off: never
    """

    prompt: str
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    preset: str | None = None
    steps: int | None = None
    guidance: Weights | None = None
    mu: float | None = None
    std: float | None = None
    guidance_interval: Interval | None = None
    uncond_every: int = 1
    unconditional: Literal["graph", "conditional", "off"] | None = None
    seed: int | None = None
    num_images: int = 1
    image: Picture | None = None
    strength: float | None = None
    fit: Literal["crop", "pad", "stretch"] | None = None
    mask: Picture | None = None
    mask_feather: int | None = None
    vae_tile: Tile = "auto"

    def __post_init__(self) -> None:
        """Raises RequestError that names the field, the value seen and the value wanted."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            value = KINDS[field.name].take(field.name, value)
            if (check := _CHECKS.get(field.name)) is not None:
                check(field.name, value)
            object.__setattr__(self, field.name, value)
        _ = self.passes  # checks what it is made of

    @property
    def passes(self) -> UnconditionalPasses:
        """When the unconditional pass runs."""
        return UnconditionalPasses(self.guidance_interval, self.uncond_every)


@dataclass(frozen=True)
class Kind:
    """What values a field takes."""

    wanted: str
    """For messages."""
    take: Callable[[str, Any], Any]
    """(name of the field, value) -> the value as the field holds it, or RequestError."""
    choices: tuple[str, ...] = ()
    """All values, where there are few."""


def as_request(request: "Request | str | Caption", changes: Mapping[str, Any]) -> Request:
    """A request with some fields changed, or one made of a prompt and fields."""
    return replace(request, **changes) if isinstance(request, Request) else Request(request, **changes)  # type: ignore[arg-type]  # Request refuses what is no prompt


def descriptions() -> dict[str, str]:
    """What the docstring of `Request` says of each field; empty under ``python -OO``, which has no docstrings."""
    _, _, attributes = (Request.__doc__ or "").partition("Attributes:")
    found = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", attributes, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _text(name: str, value: Any) -> str:
    if isinstance(value, Caption):
        return str(value)
    if isinstance(value, (list, tuple)):
        raise RequestError(f"{name} is a {type(value).__name__}, wanted one text: make a request for each of them")
    if not isinstance(value, str):
        raise RequestError(f"{name} is {_shown(value)}, wanted text")
    return str(value)


def _integer(name: str, value: Any) -> int:
    value = _scalar(value)
    if type(value) is not int:  # a bool is an int, but not a number
        raise RequestError(f"{name} is {_shown(value)}, wanted an integer")
    return value


def _number(name: str, value: Any) -> float:
    value = _scalar(value)
    if type(value) not in (int, float):
        raise RequestError(f"{name} is {_shown(value)}, wanted a number")
    try:
        return float(value)
    except OverflowError:
        raise RequestError(f"{name} is an integer of {value.bit_length()} bits, wanted a number") from None


def _weights(name: str, value: Any) -> Weights:
    if isinstance(value, str):
        return parse_guidance(value)
    if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim):
        return tuple(_number(f"{name}[{place}]", weight) for place, weight in enumerate(value))
    return _number(name, value)


def _interval(name: str, value: Any) -> Interval:
    if isinstance(value, str):
        return parse_interval(value)
    if not isinstance(value, (list, tuple, np.ndarray)) or len(value) != 2:
        raise RequestError(f"{name} is {_shown(value)}, wanted two times, as in 0.1:0.8")
    low, high = (_number(f"{name}[{place}]", time) for place, time in enumerate(value))
    return low, high


def _picture(name: str, value: Any) -> Picture:
    """A path, or pixels: (H, W, 3) uint8, and for a mask (H, W) bool or uint8 as well."""
    if isinstance(value, (str, PathLike)):
        return Path(check_file_name(name, os.fspath(value)))
    if isinstance(value, (Image.Image, bytes, bytearray)):
        label = f"the {name}"
        pixels = rgb_array(value, label) if isinstance(value, Image.Image) else decode_rgb(bytes(value), label)
        return to_mask(pixels) if name == "mask" else pixels
    if not isinstance(value, np.ndarray):
        raise RequestError(f"{name} is {_shown(value)}, wanted a file name, a PIL image, an encoded file or an array")
    return value


def check_file_name(name: str, value: Any) -> str:
    """The text `value` of a field; RequestError unless it can be the name of a file."""
    try:
        if isinstance(value, str) and value and b"\0" not in os.fsencode(value):
            return value
    except UnicodeEncodeError:  # half of a surrogate pair
        pass
    raise RequestError(f"{name} is {shown(value)}, wanted a file name")


def _tile(name: str, value: Any) -> Tile:
    if isinstance(value, str):
        # Longer ones are no number of pixels, and Python refuses to read those of thousands of digits.
        return int(value) if value.isdecimal() and value.isascii() and len(value) < 10 else value
    return _integer(name, value)


def _scalar(value: Any) -> Any:
    """Python's number for a numpy scalar or an array without dimensions."""
    return value.item() if isinstance(value, (np.generic, np.ndarray)) and value.ndim == 0 else value


def _shown(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else shown(value)


def _within(low: float, high: float, wanted: str) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        if not low <= value <= high:
            raise RequestError(f"{name} is {shown(value)}, wanted {wanted}")

    return check


def _one_of(choices: tuple[str, ...]) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        if value not in choices:
            raise RequestError(f"{name} is {shown(value)}, wanted one of {', '.join(choices)}")

    return check


def _check_weights(name: str, value: Weights) -> None:
    for weight in value if isinstance(value, tuple) else (value,):
        check_number(name, weight)


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "prompt": check_length,
    "negative_prompt": check_length,
    "preset": lambda name, value: check_preset(value),
    "steps": lambda name, value: check_steps(value),
    "guidance": _check_weights,
    "mu": check_number,
    "std": check_number,
    "unconditional": _one_of(UNCONDITIONAL),
    "seed": _within(0, SEED_LIMIT - 1, "an integer from 0 to 2**64 - 1"),
    "num_images": _within(1, MAX_IMAGES, f"1 to {MAX_IMAGES}"),
    "strength": _within(0, 1, "0 to 1"),
    "fit": _one_of(FITS),
    "mask_feather": _within(0, MAX_FEATHER, f"0 to {MAX_FEATHER} pixels"),
}
TEXT, INTEGER, NUMBER = Kind("text", _text), Kind("an integer", _integer), Kind("a number", _number)
WEIGHTS = Kind("a number, a list of numbers, or a schedule such as '7x45,3x3'", _weights)
INTERVAL = Kind("two times, as in 0.1:0.8", _interval)
PICTURE = Kind("a picture", _picture)
TILE = Kind("auto, off, or a number of pixels", _tile)
_KINDS: tuple[tuple[Any, Kind], ...] = (
    (str, TEXT),
    (int, INTEGER),
    (float, NUMBER),
    (Weights, WEIGHTS),
    (Interval, INTERVAL),
    (Picture, PICTURE),
    (Tile, TILE),
)


def _kind(annotation: Any) -> Kind:
    """The kind of a field by its annotation, `None` aside."""
    for plain, kind in _KINDS:
        if annotation in (plain, plain | None):
            return kind
    choices = next(get_args(part) for part in get_args(annotation) if part is not type(None))
    return Kind(" or ".join(choices), _text, choices)


KINDS = {name: _kind(annotation) for name, annotation in get_type_hints(Request).items()}
"""The kind of each field."""
