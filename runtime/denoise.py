"""Euler integration of the velocity field with classifier-free guidance. Knows no graph and no backend."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from runtime.schedule import Step

Velocity = Callable[[np.ndarray, np.float32], np.ndarray]
"""(latents (B, N, C) float32, time t) -> velocity (B, N, C) float32, pointing from noise to picture."""


class NonFiniteError(RuntimeError):
    """A graph gave NaN or infinity."""


def denoise(
    conditional: Velocity, unconditional: Velocity | None, latents: np.ndarray, steps: Sequence[Step]
) -> Iterator[np.ndarray]:
    """Yield the latents (B, N, C) float32 after each step; the last ones are the picture's.

    The velocity is ``g * conditional + (1 - g) * unconditional`` in float32. Where a step's guidance g is 1 the
    unconditional pass is skipped, which is exact.

    Raises:
        ValueError: a step needs guidance and `unconditional` is None.
        NonFiniteError: a velocity holds NaN or infinity; the message names the step and the pass.
    """
    if unconditional is None and any(step.guidance != 1 for step in steps):
        raise ValueError("guidance other than 1 needs an unconditional velocity, and there is none")
    one = np.float32(1.0)
    for index, step in enumerate(steps):
        where = f"at step {index + 1} of {len(steps)} (t = {step.t:.6f})"
        velocity = _finite(conditional(latents, step.t), "conditional", where)
        if step.guidance != 1 and unconditional is not None:
            free = _finite(unconditional(latents, step.t), "unconditional", where)
            velocity = step.guidance * velocity + (one - step.guidance) * free
        latents = latents + step.dt * velocity
        if not np.isfinite(latents).all():
            raise NonFiniteError(f"the latents overflow float32 {where}, with guidance {step.guidance}")
        yield latents


def _finite(velocity: np.ndarray, which: str, where: str) -> np.ndarray:
    if not np.isfinite(velocity).all():
        count = int(velocity.size - np.isfinite(velocity).sum())
        raise NonFiniteError(f"the {which} velocity has {count} NaN or infinite values {where}")
    return velocity
