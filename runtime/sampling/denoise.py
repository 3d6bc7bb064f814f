"""Euler integration of the velocity field with classifier-free guidance. Knows no graph and no backend."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor

import numpy as np

from runtime.errors import NonFiniteError, RequestError
from runtime.sampling.schedule import Step

Velocity = Callable[[np.ndarray, np.float32], np.ndarray]
"""(latents (B, N, C) float32, time t) -> velocity (B, N, C) float32, pointing from noise to picture."""
Blend = Callable[[np.ndarray, np.float32], np.ndarray]
"""(latents (B, N, C) float32 after a step, the sigma it ended at) -> the latents to go on with."""


def denoise(
    conditional: Velocity,
    unconditional: Velocity | None,
    latents: np.ndarray,
    steps: Sequence[Step],
    *,
    blend: Blend | None = None,
    executor: Executor | None = None,
) -> Iterator[np.ndarray]:
    """Yield the latents (B, N, C) float32 after each step; the last ones are the picture's.

    The velocity is ``g * conditional + (1 - g) * unconditional`` in float32. Where a step's guidance g is 1 the
    unconditional pass is skipped, which is exact; where a step says ``reuse`` the last unconditional velocity is taken.

    Args:
        conditional: the velocity with the prompt.
        unconditional: the velocity without; None if no step needs it.
        latents: (B, N, C) float32 to start from.
        steps: first step first.
        blend: applied to the latents after each step; `runtime.image.inpaint` keeps parts of a picture so.
        executor: runs the unconditional pass while this thread runs the conditional one; None for one after the other.

    Raises:
        RequestError: a step needs guidance and `unconditional` is None, or reuses a velocity that there is not yet.
        NonFiniteError: a velocity holds NaN or infinity; the message names the step and the pass.
    """
    if unconditional is None and any(step.guidance != 1 for step in steps):
        raise RequestError("guidance other than 1 needs an unconditional velocity, and there is none")
    one = np.float32(1.0)
    free: np.ndarray | None = None
    for index, step in enumerate(steps):
        where = f"at step {index + 1} of {len(steps)} (t = {step.t:.6f})"
        fresh = unconditional if step.guidance != 1 and not step.reuse else None
        velocity, new = _passes(conditional, fresh, latents, step.t, executor)
        velocity = _finite(velocity, "conditional", where)
        if new is not None:
            free = _finite(new, "unconditional", where)
        if step.guidance != 1:
            if free is None:
                raise RequestError(f"the first guided step cannot reuse an unconditional velocity, {where}")
            velocity = step.guidance * velocity + (one - step.guidance) * free
        latents = latents + step.dt * velocity
        if not np.isfinite(latents).all():
            raise NonFiniteError(f"the latents overflow float32 {where}, with guidance {step.guidance}")
        if blend is not None:
            latents = blend(latents, step.sigma_next)
        yield latents


def _passes(
    conditional: Velocity,
    unconditional: Velocity | None,
    latents: np.ndarray,
    t: np.float32,
    executor: Executor | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Both velocities, or the conditional one and None."""
    if unconditional is None:
        return conditional(latents, t), None
    if executor is None:
        return conditional(latents, t), unconditional(latents, t)
    future = executor.submit(unconditional, latents, t)
    velocity = conditional(latents, t)
    return velocity, future.result()


def _finite(velocity: np.ndarray, which: str, where: str) -> np.ndarray:
    if not np.isfinite(velocity).all():
        count = int(velocity.size - np.isfinite(velocity).sum())
        raise NonFiniteError(f"the {which} velocity has {count} NaN or infinite values {where}")
    return velocity
