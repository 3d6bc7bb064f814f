"""Random inputs for the stages."""

import numpy as np

from model.checkpoint.directory import Checkpoint
from runtime.sampling.rope import image_positions, rope_tables, text_positions


def feeds(stage: str, checkpoint: Checkpoint, length: int, grid: tuple[int, int], batch: int) -> dict[str, np.ndarray]:
    """Inputs by name for `length` text tokens, a grid of image tokens and a batch; the same for the same length."""
    random = np.random.default_rng(length)
    hidden, rope = checkpoint.transformer.hidden_size, checkpoint.transformer
    if stage == "text_encoder":
        return {"input_ids": random.integers(0, 1000, (1, length))}
    if stage == "vae_decoder":
        return {"latents": random.standard_normal((batch, *grid, 128), np.float32)}
    if stage == "vae_encoder":
        return {"image": random.integers(0, 256, (batch, 16 * grid[0], 16 * grid[1], 3), np.uint8)}
    positions = image_positions(*grid)
    values = {
        "latents": random.standard_normal((batch, len(positions), 128), np.float32),
        "timestep": random.random(batch, np.float32),
    }
    if stage == "dit_cond":
        values["text"] = random.standard_normal((batch, length, hidden), np.float32)
        positions = np.concatenate((text_positions(length), positions))
    cos, sin = rope_tables(positions, rope.attention_head_dim, rope.rope_theta, rope.mrope_section)
    return values | {"rope_cos": cos, "rope_sin": sin}
