"""Start noise equal to PyTorch's CPU generator, made with numpy alone.

``torch.randn`` on the CPU draws 32-bit words from MT19937, keeps the low 24 bits of each as a uniform number, and
turns blocks of sixteen into normal numbers by Box-Muller: the first eight give the radii, the last eight the angles;
eight cosines are followed by eight sines (ATen/native/cpu/DistributionTemplates.h, ``normal_fill``). One seed
therefore gives the same picture here and in the PyTorch pipelines. The largest difference, from the last bit of
``log``, ``cos`` and ``sin``, is below 1e-6.
"""

import math

import numpy as np

from runtime.errors import RequestError

SEED_LIMIT = 2**64
"""PyTorch takes seeds below this number and uses their low 32 bits for the CPU generator."""

_BLOCK = 16


def randn(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Standard normal float32 numbers of `shape`, as ``torch.randn(shape, generator=manual_seed(seed))`` on the CPU.

    Raises:
        RequestError: `seed` is not in [0, 2**64), or the number of values is not a multiple of 16 (PyTorch then fills
            the tail in another order; latents, with their 128 channels, never need it).
    """
    if not 0 <= seed < SEED_LIMIT:
        raise RequestError(f"seed is {seed}, wanted an integer from 0 to 2**64 - 1")
    count = math.prod(shape)
    if count % _BLOCK:
        raise RequestError(f"noise of shape {shape} has {count} values, wanted a multiple of {_BLOCK}")
    words = np.random.RandomState(seed & 0xFFFFFFFF).randint(0, 2**32, size=count, dtype=np.uint32)
    uniform = (words & 0xFFFFFF).astype(np.float32) * np.float32(2.0**-24)
    first, last = uniform.reshape(-1, 2, _BLOCK // 2).transpose(1, 0, 2)
    radius = np.sqrt(np.float32(-2.0) * np.log(np.float32(1.0) - first))
    angle = np.float32(2.0 * math.pi) * last
    return np.concatenate((radius * np.cos(angle), radius * np.sin(angle)), axis=1).reshape(shape)
