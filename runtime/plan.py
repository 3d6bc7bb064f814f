"""What to generate, checked against a bundle's manifest before any graph is loaded."""

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from runtime.manifest import Manifest
from runtime.noise import SEED_LIMIT
from runtime.prompt import PromptEncoder
from runtime.schedule import Sampling, Step, sampling, schedule

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

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        return self.height // self.pixels_per_token, self.width // self.pixels_per_token

    @property
    def steps(self) -> tuple[Step, ...]:
        return schedule(self.sampling, self.width, self.height)

    @property
    def guided(self) -> bool:
        """Whether any step needs an unconditional velocity."""
        return any(weight != 1 for weight in self.sampling.guidance)

    @property
    def needs_unconditional_graph(self) -> bool:
        return self.guided and self.unconditional == "graph"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: enough to make the picture again."""
        values = asdict(self) | {"text_tokens": len(self.token_ids)}
        del values["token_ids"], values["pixels_per_token"]
        return values


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
) -> Plan:
    """Fill in the defaults and check everything; the arguments are those of `Pipeline.generate`.

    Raises:
        ValueError: an argument is out of range, or the bundle cannot do what is asked for.
    """
    sizes = manifest.sizes
    width, height = width if width is not None else sizes.default, height if height is not None else sizes.default
    sizes.check(width, height)
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
        prompt, token_ids, width, height, sizes.multiple, seed, num_images,
        sampling(preset, steps, weights, mu, std), unconditional,
    )  # fmt: skip
    if plan.needs_unconditional_graph and "dit_uncond" not in manifest.stages:
        raise ValueError(
            "guidance other than 1 needs an unconditional transformer, and this bundle has none; choose guidance 1 "
            "(--unconditional off) or the conditional one on image tokens only (--unconditional conditional)"
        )
    return plan
