"""The linear map from latents to colours that previews use, fitted with the checkpoint's own VAE.

A few small synthetic pictures go through the encoder and back through the decoder. For each 8 x 8 pixels the decoder
gives a mean colour, and the VAE's 32 channels there explain it: least squares, with a small ridge for directions that
the pictures hardly visit. Each channel counts as if it had been drawn from its posterior: transformers draw it so, and
what the decoder takes for noise must not become colour. The map is the same for all positions in the VAE's own latent
space; the four quarters of a token differ only in their statistics, which are folded in. Everything runs in float32 and
is rounded to five digits, so that another machine gives the same manifest but for a last digit.
"""

import numpy as np
import torch

from model.autoencoder import PATCH, from_bytes, pack
from model.checkpoint.directory import Checkpoint
from runtime.bundle.preview_spec import PreviewSpec

_SIDE, _COUNT = 32, 16
"""Pixels and number of the pictures: 256 samples for 33 unknowns, in 1.5 s with the released sizes on one core."""
_RIDGE = 1e-3
"""Of the mean variance of the channels."""
_DIGITS = 5


def fit_preview(checkpoint: Checkpoint) -> PreviewSpec:
    """The preview map of a checkpoint's VAE; CheckpointError if a weight is not finite."""
    encoder, decoder = checkpoint.load("vae_encoder"), checkpoint.load("vae_decoder")
    with torch.no_grad():
        latents, log_variance = encoder.moments(from_bytes(torch.from_numpy(_pictures())))  # (B, c, 2h, 2w)
        images = decoder(decoder.latent_stats.normalize(pack(latents)))
    side = images.shape[1] // latents.shape[2]
    colours = images.numpy().astype(np.float64)
    colours = colours.reshape(_COUNT, _SIDE // side, side, _SIDE // side, side, 3).mean(axis=(2, 4)).reshape(-1, 3)
    samples = latents.permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    noise = log_variance.double().exp().sum(dim=(0, 2, 3)).numpy()
    weights, offset = _least_squares(samples, colours, noise)
    stats = decoder.latent_stats
    means, stds = (part.detach().double().numpy().reshape(PATCH**2, -1) for part in (stats.mean, stats.std))
    rows = (stds[:, :, None] * weights).reshape(-1, 3)
    return PreviewSpec(_rounded(rows), _rounded(offset + means @ weights))


def _least_squares(samples: np.ndarray, colours: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (c, 3) and offset (3,) for samples (n, c), the sums (c,) of their noise's squares, and colours (n, 3)."""
    centre, mean = samples.mean(axis=0), colours.mean(axis=0)
    spread = samples - centre
    square = spread.T @ spread
    ridge = _RIDGE * np.trace(square) / len(square) * np.eye(len(square))
    weights = np.linalg.solve(square + np.diag(noise) + ridge, spread.T @ (colours - mean))
    return weights, mean - centre @ weights


def _pictures() -> np.ndarray:
    """(B, H, W, 3) uint8: rectangles of random colours over each other, with gradients and some grain."""
    random = np.random.RandomState(0)
    pictures = np.empty((_COUNT, _SIDE, _SIDE, 3))
    ramp = np.linspace(-1, 1, _SIDE)
    for picture in pictures:
        picture[:] = random.uniform(0, 255, 3)
        for _ in range(4):
            top, left = random.randint(-_SIDE // 4, _SIDE, 2)
            height, width = random.randint(_SIDE // 4, _SIDE * 3 // 4, 2)
            part = picture[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
            part[:] = random.uniform(0, 255, 3)
        picture += random.uniform(-20, 20, 3) * ramp[:, None, None] + random.uniform(-20, 20, 3) * ramp[:, None]
        picture += random.uniform(0, 4) * random.standard_normal(picture.shape)
    return np.clip(pictures, 0, 255).astype(np.uint8)


def _rounded(rows: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(f"{value:.{_DIGITS}g}") for value in row) for row in rows)
