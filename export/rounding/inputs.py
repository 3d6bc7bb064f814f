"""Inputs to compare on: one prompt, and latents of a drawn picture with noise at a few times."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from calibration.points import STAGES
from calibration.reference import manifest_of, prompt_encoder
from model.checkpoint.directory import Checkpoint
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


def latents_of_a_picture(checkpoint: Checkpoint) -> Tensor:
    """Latents (1, h, w, C) float32 of a picture of smooth random colours."""
    side = min(SIDE, manifest_of(checkpoint).sizes.default)
    spots = np.random.default_rng(_SEED).integers(0, 256, (_SPOTS, _SPOTS, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(spots).resize((side, side), Image.Resampling.BICUBIC))
    with torch.no_grad():
        latents: Tensor = checkpoint.load("vae_encoder")(torch.from_numpy(pixels)[None])
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
