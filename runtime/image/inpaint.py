"""Inpainting: a part of a picture is painted anew, the rest stays.

While it runs, the latents outside of the mask are set to the picture's own, noised as the next step expects (SDEdit,
RePaint; the same as DiffSynth-Studio's ``return_to_timestep``). A latent covers 8 x 8 pixels and sees further; with
one white pixel it counts as painted. The decoded result is therefore close to the picture outside of the mask, but not
equal. In the end the picture's own pixels are put back there. The seam is hidden by a ramp of `feather` pixels on the
kept side, where the decoded pixels differ from the picture's by no more than the VAE loses.
"""

import numpy as np

from runtime.errors import RequestError
from runtime.sampling.denoise import Blend

FEATHER = 16
"""Pixels of the ramp unless given: one token."""
MAX_FEATHER = 256
"""An eighth of the largest picture's side, and no more than anybody wants."""
PATCH = 2
"""Latents per token on each axis; a token's channels are ordered (row in patch, column in patch, channel)."""


def noised(picture: np.ndarray, noise: np.ndarray, sigma: np.float32) -> np.ndarray:
    """Latents between a picture's (1, N, C) and noise (B, N, C), float32: ``(1 - sigma) * picture + sigma * noise``."""
    return (np.float32(1.0) - sigma) * picture + sigma * noise


def begin(
    picture: np.ndarray, repaint: np.ndarray | None, noise: np.ndarray, sigma: np.float32, pixels_per_token: int
) -> tuple[np.ndarray, Blend | None]:
    """The latents (B, N, C) to start from, and what keeps a picture outside of the mask.

    Args:
        picture: its latents (1, N, C) float32.
        repaint: mask (H, W) bool, True where it is painted anew; None for everywhere.
        noise: (B, N, C) float32.
        sigma: noise level of the first step.
        pixels_per_token: on each axis.

    Raises:
        RequestError: picture and noise are of different shapes.
    """
    if picture.shape[1:] != noise.shape[1:]:
        raise RequestError(f"the noise has shape {noise.shape}, wanted (B, {picture.shape[1]}, {picture.shape[2]})")
    blend = None if repaint is None else keep_outside(repaint, picture, noise, pixels_per_token)
    return noised(picture, noise, sigma), blend


def keep_outside(repaint: np.ndarray, picture: np.ndarray, noise: np.ndarray, pixels_per_token: int) -> Blend:
    """The blend of a mask (H, W) bool for a picture's latents (1, N, C) and the start noise (B, N, C)."""
    painted = latent_mask(repaint, picture.shape[2], pixels_per_token)

    def blend(latents: np.ndarray, sigma: np.float32) -> np.ndarray:
        return np.where(painted, latents, noised(picture, noise, sigma))

    return blend


def latent_mask(repaint: np.ndarray, channels: int, pixels_per_token: int) -> np.ndarray:
    """(N, C) bool from (H, W) bool: True for every latent with a pixel to paint."""
    size = pixels_per_token // PATCH
    rows, columns = repaint.shape[0] // pixels_per_token, repaint.shape[1] // pixels_per_token
    painted = np.asarray(repaint.reshape(rows, PATCH, size, columns, PATCH, size).any(axis=(2, 5)))
    patches = painted.transpose(0, 2, 1, 3).reshape(rows * columns, PATCH * PATCH)  # from (rows, p, columns, q)
    return np.repeat(patches, channels // PATCH**2, axis=1)


def paste(images: np.ndarray, picture: np.ndarray, repaint: np.ndarray | None, feather: int) -> np.ndarray:
    """The picture (H, W, 3) uint8 with the painted part of each of `images` (B, H, W, 3) uint8 in it.

    Pixels that are further than `feather` from the mask are the picture's, bit for bit. Without a mask all is painted.
    """
    if repaint is None:
        return images
    weight = ramp(repaint, feather)[:, :, None]
    mixed: np.ndarray = np.rint(weight * images + (np.float32(1.0) - weight) * picture)
    return mixed.astype(np.uint8)


def ramp(repaint: np.ndarray, feather: int) -> np.ndarray:
    """(H, W) float32: 1 in the mask, falling to 0 over `feather` pixels around it.

    The mask is widened by half of that and smoothed with a box of the same radius, which leaves 1 inside.
    """
    if feather < 2:
        return repaint.astype(np.float32)
    radius = feather // 2
    widened = _box_sum(repaint.astype(np.int32), radius) > 0
    return (_box_sum(widened.astype(np.int32), radius) / np.float32((2 * radius + 1) ** 2)).astype(np.float32)


def _box_sum(values: np.ndarray, radius: int) -> np.ndarray:
    """Sums over (2 * radius + 1)² values around each; beyond the border its values go on."""
    for axis in (0, 1):
        padding = [(radius + 1, radius) if axis == other else (0, 0) for other in (0, 1)]
        sums = np.cumsum(np.pad(values, padding, mode="edge"), axis=axis)
        count = values.shape[axis]
        high, low = (sums.take(range(start, start + count), axis) for start in (2 * radius + 1, 0))
        values = high - low
    return values
