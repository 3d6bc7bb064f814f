"""What to generate, checked against a bundle's manifest before any graph is loaded."""

import secrets
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from runtime.bundle.manifest import Manifest
from runtime.constants import TILE_GRAPHS
from runtime.errors import RequestError, shown
from runtime.image.init_image import Source, Start, prepare
from runtime.image.tiling import resolve_tile
from runtime.prompt.caption import Caption
from runtime.prompt.tokens import PromptEncoder
from runtime.request import Request, as_request
from runtime.sampling.guidance import EVERY_STEP, UnconditionalPasses, thin_out
from runtime.sampling.schedule import Sampling, Step, sampling, schedule

NEGATIVE = "negative"
"""`Plan.unconditional` of a plan whose second pass is the conditional transformer on the negative prompt."""
_RANDOM_SEEDS = 2**32


@dataclass(frozen=True)
class Plan:
    """All that determines a picture, given a bundle."""

    prompt: str
    token_ids: tuple[int, ...]
    """The chat template's tokens included."""
    width: int
    height: int
    pixels_per_token: int
    seed: int
    num_images: int
    sampling: Sampling
    unconditional: str
    """One of `runtime.request.UNCONDITIONAL`, or `NEGATIVE`."""
    passes: UnconditionalPasses = EVERY_STEP
    vae_tile: int | None = None
    """Side of the VAE's tiles in pixels; None for the whole picture at once."""
    start: Start | None = None
    """The picture to start from; None for noise alone."""
    negative_prompt: str | None = None
    negative_token_ids: tuple[int, ...] = ()
    """As `token_ids`; empty without a negative prompt."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return self.height // self.pixels_per_token, self.width // self.pixels_per_token

    @property
    def steps(self) -> tuple[Step, ...]:
        """The Euler steps, with the guidance that is left when the unconditional passes are thinned out."""
        strength = 1.0 if self.start is None else self.start.strength
        return thin_out(schedule(self.sampling, self.width, self.height, strength), self.passes)

    @property
    def guided(self) -> bool:
        """Whether any step needs a second velocity."""
        return any(step.guidance != 1 for step in self.steps)

    @property
    def needs_unconditional_graph(self) -> bool:
        """Whether any step runs the unconditional transformer."""
        return self.guided and self.unconditional == "graph"

    @property
    def vae_graphs(self) -> tuple[str, ...]:
        """Names of the VAE's graphs that are needed."""
        names = ("vae_decoder",) if self.start is None else ("vae_encoder", "vae_decoder")
        return names if self.vae_tile is None else tuple(TILE_GRAPHS[name] for name in names)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: enough, with the files that it names, to make the picture again."""
        plain = {
            "prompt": self.prompt,
            "width": self.width,
            "height": self.height,
            "seed": self.seed,
            "num_images": self.num_images,
            "sampling": asdict(self.sampling),
            "unconditional": self.unconditional,
            "passes": asdict(self.passes),
            "vae_tile": self.vae_tile,
            "start": None if self.start is None else self.start.to_dict(),
            "text_tokens": len(self.token_ids),
        }
        # Only where there is one: pictures of earlier versions have no such key and still count as finished.
        return plain if self.negative_prompt is None else plain | {"negative_prompt": self.negative_prompt}


def make_plan(manifest: Manifest, encoder: PromptEncoder, request: Request | str | Caption, **changes: Any) -> Plan:
    """Fill in the bundle's defaults and check what the request asks of it.

    Args:
        manifest: of the bundle.
        encoder: of its prompts.
        request: or a prompt alone.
        changes: fields of `Request`, which win over the request's.

    Raises:
        MissingFileError: a picture or mask file is missing.
        RequestError: a field is out of range, fields exclude each other, or the bundle cannot do what is asked for.
    """
    request = as_request(request, changes)
    sizes = manifest.sizes
    start = _start(manifest, request)
    width, height = (start.width, start.height) if start else (request.width, request.height)
    width, height = width if width is not None else sizes.default, height if height is not None else sizes.default
    sizes.check(width, height)
    tile = resolve_tile(request.vae_tile, width, height, sizes.multiple, set(TILE_GRAPHS.values()) <= manifest.stages)
    unconditional = _unconditional(request)
    plan = Plan(
        request.prompt,
        _token_ids(encoder, request.prompt),
        width,
        height,
        sizes.multiple,
        secrets.randbelow(_RANDOM_SEEDS) if request.seed is None else request.seed,
        request.num_images,
        _sampling(manifest, request, unconditional),
        unconditional,
        request.passes,
        tile,
        start,
        request.negative_prompt,
        _negative_token_ids(encoder, request.negative_prompt),
    )
    _check_guidance(manifest, plan)
    return plan


def _token_ids(encoder: PromptEncoder, prompt: str) -> tuple[int, ...]:
    return tuple(int(token) for token in np.ravel(encoder.encode(prompt)))


def _negative_token_ids(encoder: PromptEncoder, prompt: str | None) -> tuple[int, ...]:
    if prompt is None:
        return ()
    try:
        return _token_ids(encoder, prompt)
    except RequestError as error:
        raise RequestError(f"negative_prompt: {error}") from error


def _start(manifest: Manifest, request: Request) -> Start | None:
    """The picture to start from, read and fitted; None without one. Strength 1 without one is text-to-image."""
    if request.mask_feather is not None and request.mask is None:
        raise RequestError(f"mask_feather {request.mask_feather} needs a mask, and none is given")
    if request.image is None:
        below = request.strength not in (None, 1)
        for name, given in (("strength below 1", below), ("fit", request.fit), ("a mask", request.mask is not None)):
            if given:
                raise RequestError(f"{name} needs an image to start from, and none is given")
        return None
    if "vae_encoder" not in manifest.stages:
        raise RequestError("starting from a picture needs the VAE's encoder, and this bundle has none")
    source = Source(request.image, request.strength, request.fit, request.mask, request.mask_feather)
    return prepare(source, manifest.sizes, request.width, request.height)


def _unconditional(request: Request) -> str:
    """Where the second velocity comes from."""
    if request.negative_prompt is None:
        return request.unconditional or "graph"
    if request.unconditional is not None:
        raise RequestError(
            f"negative_prompt and unconditional {shown(request.unconditional)} exclude each other: the negative prompt "
            "takes the place of the unconditional pass"
        )
    return NEGATIVE


def _sampling(manifest: Manifest, request: Request, unconditional: str) -> Sampling:
    """The request's schedule, with the bundle's defaults for what it leaves open."""
    guidance = request.guidance
    if unconditional == "off":
        if guidance is not None:
            raise RequestError(f"guidance {guidance} needs an unconditional pass, and unconditional is 'off'")
        guidance = 1.0
    preset = request.preset
    if preset is None and request.steps is None:
        preset = manifest.default_preset
    chosen = sampling(preset, request.steps, guidance, request.mu, request.std)
    return chosen if guidance is not None else _with_default(chosen, manifest.default_guidance)


def _with_default(chosen: Sampling, guidance: float | None) -> Sampling:
    """The bundle's own guidance at each step that has any: presets for distilled weights stay without."""
    if guidance is None:
        return chosen
    weights = tuple(1.0 if weight == 1 else guidance for weight in chosen.guidance)
    return chosen if weights == chosen.guidance else replace(chosen, guidance=weights, preset=None)


def _check_guidance(manifest: Manifest, plan: Plan) -> None:
    """Refuse what needs guidance where there is none, and guidance that this bundle cannot give."""
    if plan.passes != EVERY_STEP or plan.unconditional == NEGATIVE:
        _check_guided(plan)
    if plan.needs_unconditional_graph and "dit_uncond" not in manifest.stages:
        raise RequestError(
            "guidance other than 1 needs an unconditional transformer, and this bundle has none; choose guidance 1 "
            "(--unconditional off) or the conditional one on image tokens only (--unconditional conditional)"
        )


def _check_guided(plan: Plan) -> None:
    """Refuse to thin out guidance that is not there, or to leave nothing of it."""
    if all(weight == 1 for weight in plan.sampling.guidance):
        what = "a guidance interval or reuse of the unconditional pass"
        what = "negative_prompt" if plan.unconditional == NEGATIVE else what
        raise RequestError(f"{what} needs guidance, and all of it is 1")
    if not plan.guided:
        low, high = plan.passes.interval or (0.0, 1.0)
        times = [float(step.t) for step in plan.steps]
        raise RequestError(
            f"the guidance interval {low:g}:{high:g} holds no step with guidance: their times are "
            f"{', '.join(f'{time:.3f}' for time in times[:3])}, …, {times[-1]:.3f}"
        )
