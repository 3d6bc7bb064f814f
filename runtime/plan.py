"""What to generate, checked against a bundle's manifest before any graph is loaded."""

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from runtime.bundle.manifest import Manifest
from runtime.constants import TILE_GRAPHS
from runtime.image.init_image import Source, Start, prepare
from runtime.image.tiling import resolve_tile
from runtime.prompt.tokens import PromptEncoder
from runtime.sampling.guidance import EVERY_STEP, UnconditionalPasses, thin_out
from runtime.sampling.noise import SEED_LIMIT
from runtime.sampling.schedule import Sampling, Step, sampling, schedule

UNCONDITIONAL = ("graph", "conditional", "off")
"""Where guidance takes the unconditional velocity from: the unconditional transformer, the conditional one on image
tokens alone (as DiffSynth-Studio does when the other is absent), or nowhere, which means guidance 1."""
MAX_IMAGES = 64
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
    passes: UnconditionalPasses = EVERY_STEP
    vae_tile: int | None = None
    """Side of the VAE's tiles in pixels; None for the whole picture at once."""
    start: Start | None = None
    """The picture to start from; None for noise alone."""

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
        """Whether any step needs an unconditional velocity."""
        return any(step.guidance != 1 for step in self.steps)

    @property
    def needs_unconditional_graph(self) -> bool:
        return self.guided and self.unconditional == "graph"

    @property
    def vae_graphs(self) -> tuple[str, ...]:
        """Names of the VAE's graphs that are needed."""
        names = ("vae_decoder",) if self.start is None else ("vae_encoder", "vae_decoder")
        return names if self.vae_tile is None else tuple(TILE_GRAPHS[name] for name in names)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: enough, with the files that it names, to make the picture again."""
        return {
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


def make_plan(
    manifest: Manifest,
    encoder: PromptEncoder,
    prompt: str,
    *,
    width: int | None = None,
    height: int | None = None,
    preset: str | None = None,
    steps: int | None = None,
    guidance: float | Sequence[float] | None = None,
    mu: float | None = None,
    std: float | None = None,
    seed: int | None = None,
    num_images: int = 1,
    unconditional: str = "graph",
    passes: UnconditionalPasses = EVERY_STEP,
    vae_tile: str | int = "auto",
    source: Source | None = None,
) -> Plan:
    """Fill in the defaults and check everything; the arguments are those of `Pipeline.generate`.

    Raises:
        FileNotFoundError: a picture or mask file is missing.
        ValueError: an argument is out of range, or the bundle cannot do what is asked for.
    """
    sizes = manifest.sizes
    start = None
    if source is not None:
        if "vae_encoder" not in manifest.stages:
            raise ValueError("starting from a picture needs the VAE's encoder, and this bundle has none")
        start = prepare(source, sizes, width, height)
        width, height = start.width, start.height
    width, height = width if width is not None else sizes.default, height if height is not None else sizes.default
    sizes.check(width, height)
    tile = resolve_tile(vae_tile, width, height, sizes.multiple, set(TILE_GRAPHS.values()) <= manifest.stages)
    if not 1 <= num_images <= MAX_IMAGES:
        raise ValueError(f"num_images is {num_images}, wanted 1 to {MAX_IMAGES}")
    seed = secrets.randbelow(_RANDOM_SEEDS) if seed is None else seed
    if not 0 <= seed < SEED_LIMIT:
        raise ValueError(f"seed is {seed}, wanted an integer from 0 to 2**64 - 1")
    if unconditional not in UNCONDITIONAL:
        raise ValueError(f"unconditional is {unconditional!r}, wanted one of {', '.join(UNCONDITIONAL)}")
    if unconditional == "off":
        if guidance is not None:
            raise ValueError(f"guidance {guidance} needs an unconditional pass, and unconditional is 'off'")
        guidance = 1.0
    if preset is None and steps is None:
        preset = manifest.default_preset
    weights = tuple(guidance) if isinstance(guidance, Sequence) else guidance
    token_ids = tuple(int(token) for token in np.ravel(encoder.encode(prompt)))
    plan = Plan(
        prompt,
        token_ids,
        width,
        height,
        sizes.multiple,
        seed,
        num_images,
        sampling(preset, steps, weights, mu, std),
        unconditional,
        passes,
        tile,
        start,
    )
    if passes != EVERY_STEP:
        _check_passes(plan)
    if plan.needs_unconditional_graph and "dit_uncond" not in manifest.stages:
        raise ValueError(
            "guidance other than 1 needs an unconditional transformer, and this bundle has none; choose guidance 1 "
            "(--unconditional off) or the conditional one on image tokens only (--unconditional conditional)"
        )
    return plan


def _check_passes(plan: Plan) -> None:
    """Refuse to thin out what is not there, or to leave nothing of it."""
    if all(weight == 1 for weight in plan.sampling.guidance):
        raise ValueError("a guidance interval or reuse of the unconditional pass needs guidance, and all of it is 1")
    if not plan.guided:
        low, high = plan.passes.interval or (0.0, 1.0)
        times = [float(step.t) for step in plan.steps]
        raise ValueError(
            f"the guidance interval {low:g}:{high:g} holds no step with guidance: their times are "
            f"{', '.join(f'{time:.3f}' for time in times[:3])}, …, {times[-1]:.3f}"
        )
