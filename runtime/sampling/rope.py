"""Positions of text and image tokens, and the rotary tables made from them.

The tables are computed here and not in a graph because image positions start at 65536, which fp16 cannot hold and
which TF32 and bf16 can only step by 64 and 512. The angles are float32 products of float32 frequencies, as in the
PyTorch implementations, and their cosines and sines are taken in float64. (Angles in float64 would be "more exact",
but the model was not run that way: they move cosines by up to 4.4e-3 at position 65536. With the float32 recipe
the tables equal diffusers' to 6e-8, except for one frequency of the 128, which differs in its last bit.)
"""

import numpy as np

from runtime.constants import IMAGE_POSITION_OFFSET


def text_positions(length: int) -> np.ndarray:
    """(T, 3) int64 coordinates (t, h, w) of text tokens: i on every axis."""
    return np.repeat(np.arange(length, dtype=np.int64)[:, None], 3, axis=1)


def image_positions(grid_height: int, grid_width: int) -> np.ndarray:
    """(N, 3) int64 coordinates (t, h, w) of the image tokens in row-major order: (0, row, column) + 65536."""
    rows, columns = np.divmod(np.arange(grid_height * grid_width, dtype=np.int64), grid_width)
    return np.stack((np.zeros_like(rows), rows, columns), axis=1) + IMAGE_POSITION_OFFSET


def rope_tables(
    positions: np.ndarray, head_dim: int, theta: float, sections: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine tables (L, head_dim) float32 for interleaved multi-axis RoPE.

    Lane k turns with theta ** (-2k / head_dim). It reads the h coordinate for k = 1, 4, 7, … and w for k = 2, 5, 8, …
    below three times that axis' section, and t otherwise; the second half of the lanes repeats the first
    (split-half rotation).

    Args:
        positions: (L, 3) integer coordinates (t, h, w).
        head_dim: size of an attention head, even.
        theta: base of the frequencies.
        sections: number of lanes for each axis (t, h, w).
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1.0) / np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)
    axis_of_lane = np.zeros(head_dim // 2, dtype=np.int64)
    for axis in (1, 2):
        axis_of_lane[axis : 3 * sections[axis] : 3] = axis
    angles = positions.astype(np.float32)[:, axis_of_lane] * frequencies
    angles = np.concatenate((angles, angles), axis=1).astype(np.float64)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
