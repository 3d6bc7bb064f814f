"""Which steps run the unconditional pass. Guidance costs a second transformer; this leaves some of it out.

- An interval of the time t: outside of it guidance is 1, for which the pass is skipped exactly. t runs from 0 (noise)
  to 1 (picture) and is 1 minus the noise level sigma, so an interval means the same with any number of steps. (Guidance
  in a limited interval of noise levels: Kynkäänniemi et al. 2024, arXiv 2404.07724.)
- Every K-th guided step: those between take the last unconditional velocity, which changes slowly, for their own.

Both change the picture, so both are off unless asked for. `scripts/bench/guidance.py` measures what they save.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from runtime.errors import RequestError, shown
from runtime.sampling.schedule import MAX_STEPS, Step


@dataclass(frozen=True)
class UnconditionalPasses:
    """When the unconditional pass runs; the default is at every step with guidance."""

    interval: tuple[float, float] | None = None
    """First and last time t, inclusive, at which guidance applies; None for all of it."""
    every: int = 1
    """Guided steps for each unconditional pass."""

    def __post_init__(self) -> None:
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1] <= 1:
            low, high = self.interval
            raise RequestError(
                f"guidance_interval is {low:g}:{high:g}, wanted two times from 0 to 1, the lower one first"
            )
        if not 1 <= self.every <= MAX_STEPS:
            raise RequestError(f"uncond_every is {shown(self.every)}, wanted 1 to {MAX_STEPS} steps")


EVERY_STEP = UnconditionalPasses()


def parse_interval(text: str) -> tuple[float, float]:
    """Read ``A:B``; RequestError if it is not of this form."""
    match = re.fullmatch(r"\s*([-+0-9.eE]+)\s*:\s*([-+0-9.eE]+)\s*", text)
    try:
        low, high = match.groups() if match else ("", "")
        return float(low), float(high)
    except ValueError:
        raise RequestError(f"guidance_interval is {shown(text)}, wanted A:B, as in 0.1:0.8") from None


def thin_out(steps: Sequence[Step], passes: UnconditionalPasses) -> tuple[Step, ...]:
    """The steps with guidance 1 outside of the interval, and with reuse between the passes that are left.

    The first guided step, and the first after a step without guidance, have a pass of their own.
    """
    chosen: list[Step] = []
    guided = 0  # guided steps since the last one without guidance
    for step in steps:
        if passes.interval is not None and not passes.interval[0] <= step.t <= passes.interval[1]:
            step = replace(step, guidance=np.float32(1.0))
        if step.guidance == 1:
            guided = 0
        else:
            step = replace(step, reuse=guided % passes.every != 0)
            guided += 1
        chosen.append(step)
    return tuple(chosen)
