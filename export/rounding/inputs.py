"""Inputs to compare on: one prompt, and latents of a drawn picture with noise at a few times."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from calibration.points import STAGES
from calibration.reference import manifest_of, prompt_encoder
from model.checkpoint.directory import Checkpoint
from runtime.graph import Call
from runtime.plan import make_plan
from runtime.sampling.noise import randn
from runtime.sampling.rope import image_positions, rope_tables, text_positions

TIMES = (0.1, 0.5, 0.9)
"""0 is noise."""
SIDE = 256
"""Pixels, or the model's default size if that is smaller."""
_SEED, _SPOTS = 11, 8


def token_ids(checkpoint: Checkpoint, prompt: str) -> dict[str, Tensor]:
    """The text encoder's input."""
    plan = make_plan(manifest_of(checkpoint), prompt_encoder(checkpoint), prompt)
    return {"input_ids": torch.tensor([plan.token_ids])}


def default_side(checkpoint: Checkpoint) -> int:
    """Side of the picture in pixels."""
    return min(SIDE, manifest_of(checkpoint).sizes.default)


def picture_of(side: int) -> Tensor:
    """A picture (1, side, side, 3) uint8 of smooth random colours."""
    spots = np.random.default_rng(_SEED).integers(0, 256, (_SPOTS, _SPOTS, 3), dtype=np.uint8)
    return torch.from_numpy(np.array(Image.fromarray(spots).resize((side, side), Image.Resampling.BICUBIC)))[None]


def latents_of_a_picture(checkpoint: Checkpoint, side: int | None = None) -> Tensor:
    """Latents (1, h, w, C) float32 of the picture of `side` pixels; None for the default."""
    with torch.no_grad():
        latents: Tensor = checkpoint.load("vae_encoder")(picture_of(side or default_side(checkpoint)))
    return latents


def transformer_feeds(checkpoint: Checkpoint, stage: str, picture: Tensor, text: Tensor) -> list[dict[str, Tensor]]:
    """Inputs of a transformer at each of `TIMES`; `text` is (1, T, E)."""
    rows, columns = picture.shape[1:3]
    clean = picture.flatten(1, 2)
    noise = torch.from_numpy(randn(tuple(clean.shape), _SEED))
    length = text.shape[1] if stage == STAGES[0] else 0
    positions = np.concatenate((text_positions(length), image_positions(rows, columns)))
    rope = manifest_of(checkpoint).rope
    cosines, sines = (
        torch.from_numpy(table) for table in rope_tables(positions, rope.head_dim, rope.theta, rope.sections)
    )
    fixed = {"rope_cos": cosines, "rope_sin": sines} | ({"text": text} if length else {})
    return [{"latents": torch.lerp(noise, clean, t), "timestep": torch.tensor([t])} | fixed for t in TIMES]


def calls_of(inputs: Sequence[dict[str, Tensor]], results: Sequence[Tensor]) -> list[Call]:
    """Inputs and what they gave, as graphs have them."""
    feeds = [{name: value.numpy() for name, value in one.items()} for one in inputs]
    return [Call(arrays, result.detach().numpy()) for arrays, result in zip(feeds, results, strict=True)]
