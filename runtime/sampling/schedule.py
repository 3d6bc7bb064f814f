"""Presets, guidance schedules and the logit-normal time steps. Arithmetic only; no model in sight.

Time runs from t = 0 (noise) to t = 1 (picture); sigma is 1 - t. The formula is the released one (`ideogram4`
``scheduler.py``): ``t(u) = clamp(1 - sigmoid(mean + std * icdf(u)))``, u from 1 down to 0, with the mean shifted by
half the logarithm of the pixel count over 512 x 512. The clamp comes from log-SNR 18 and -15.

The last step ends at exactly t = 1, as in diffusers, DiffSynth-Studio and ai-toolkit; the original code stops at
t = 0.999447 and leaves 0.055 % of noise in the picture.
"""

import math
import re
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from runtime.constants import LARGEST_NUMBER
from runtime.errors import RequestError, shown

_T_MIN = 1.0 / (1.0 + math.exp(0.5 * 18.0))
_T_MAX = 1.0 / (1.0 + math.exp(0.5 * -15.0))
_BASE_PIXELS = 512 * 512
_TIMESTEP_SCALE = np.float32(1000.0)
MAX_STEPS = 1000


def check_steps(steps: int) -> None:
    """Raise RequestError unless a schedule can have so many steps."""
    if not 1 <= steps <= MAX_STEPS:
        raise RequestError(f"the number of steps is {shown(steps)}, wanted 1 to {MAX_STEPS}")


def check_number(name: str, value: float) -> None:
    """Raise RequestError unless ``guidance``, ``mu`` or ``std`` may have this value."""
    if not abs(value) <= LARGEST_NUMBER:
        raise RequestError(f"{name} is {shown(value)}, wanted a number of at most {LARGEST_NUMBER:g}")
    if name == "std" and value <= 0:
        raise RequestError(f"std is {value}, wanted a number above 0")


def check_preset(name: str) -> None:
    """Raise RequestError unless there is such a preset."""
    if name not in PRESETS:
        raise RequestError(f"preset is {shown(name)}, wanted one of {', '.join(PRESETS)}")


@dataclass(frozen=True)
class Sampling:
    """How the latents are integrated: the guidance of each step, first step first, and the shape of the schedule."""

    guidance: tuple[float, ...]
    """One guidance weight per step; 1 means that the unconditional pass is skipped."""
    mu: float
    """Mean of the logit-normal schedule at 512 x 512."""
    std: float
    """Standard deviation of the logit-normal schedule."""
    preset: str | None = None
    """Name of the preset that this equals, None when any of its values was given by hand."""

    def __post_init__(self) -> None:
        check_steps(len(self.guidance))
        for name, value in (("std", self.std), ("mu", self.mu), *(("guidance", g) for g in self.guidance)):
            check_number(name, value)


@dataclass(frozen=True)
class Step:
    """One Euler step from sigma to sigma_next (float32, both in [0, 1])."""

    sigma: np.float32
    sigma_next: np.float32
    guidance: np.float32
    """1 means that the unconditional pass is skipped."""
    reuse: bool = False
    """Whether the last unconditional velocity stands in for this step's; see `runtime.sampling.guidance`."""

    @property
    def t(self) -> np.float32:
        """Time that the model sees. Two roundings of float32 are those of diffusers, which stores 1000 * sigma."""
        return np.float32(1.0) - (self.sigma * _TIMESTEP_SCALE) / _TIMESTEP_SCALE

    @property
    def dt(self) -> np.float32:
        """Length of the step in time, positive."""
        return self.sigma - self.sigma_next


def parse_guidance(text: str) -> tuple[float, ...]:
    """Read a guidance schedule: ``7x45,3x3`` is 45 steps at 7, then 3 steps at 3; ``7,7,3`` is three steps.

    Raises:
        RequestError: an entry is not of the form ``WEIGHT`` or ``WEIGHTxCOUNT``.
    """
    schedule: list[float] = []
    for entry in text.split(","):
        match = re.fullmatch(r"\s*([-+0-9.eE]+)\s*(?:x\s*([0-9]{1,4}))?\s*", entry)
        try:
            weight, count = match.groups() if match else ("", None)
            schedule += [float(weight)] * int(count or 1)
        except ValueError:
            raise RequestError(
                f"guidance schedule {shown(text)} has the entry {shown(entry)}, wanted WEIGHT or WEIGHTxCOUNT, "
                "as in 7x45,3x3"
            ) from None
    return tuple(schedule)


PRESETS = {
    name: Sampling(parse_guidance(guidance), mu, std, name)
    for name, guidance, mu, std in (
        ("V4_QUALITY_48", "7x45,3x3", 0.0, 1.5),
        ("V4_DEFAULT_20", "7x18,3x2", 0.0, 1.75),
        ("V4_TURBO_12", "7x11,3x1", 0.5, 1.75),
        ("V4_FAST_20", "1x20", 0.0, 1.75),
        ("V4_INSTANT_8", "1x8", 0.0, 1.75),
    )
}
"""The released presets; the last two are for distilled weights, which need no guidance (SGLang, fal)."""

DEFAULT_GUIDANCE, DEFAULT_MU, DEFAULT_STD = 7.0, 0.0, 1.5
"""What ``steps`` alone means: the values of diffusers' ``Ideogram4Pipeline.__call__``, guidance held constant."""


def sampling(
    preset: str | None = None,
    steps: int | None = None,
    guidance: float | tuple[float, ...] | None = None,
    mu: float | None = None,
    std: float | None = None,
) -> Sampling:
    """Combine a preset (or a number of steps) with values given by hand, which win over the preset's.

    Raises:
        RequestError: the preset is unknown, both a preset and a number of steps are given, or a guidance schedule has
            another length than the steps.
    """
    if preset is not None and steps is not None:
        raise RequestError(f"preset {preset} fixes the number of steps; give either a preset or {steps} steps")
    if preset is not None:
        check_preset(preset)
    if preset is not None:
        base = PRESETS[preset]
    elif steps is not None:
        check_steps(steps)
        base = Sampling((DEFAULT_GUIDANCE,) * steps, DEFAULT_MU, DEFAULT_STD)
    else:
        raise RequestError("neither a preset nor a number of steps is given")
    if guidance is None and mu is None and std is None:
        return base
    count = len(base.guidance)
    if isinstance(guidance, tuple) and len(guidance) != count:
        raise RequestError(f"the guidance schedule has {len(guidance)} entries, wanted one for each of {count} steps")
    if guidance is None:
        weights = base.guidance
    else:
        weights = guidance if isinstance(guidance, tuple) else (float(guidance),) * count
    return Sampling(weights, base.mu if mu is None else mu, base.std if std is None else std)


def schedule(sampling: Sampling, width: int, height: int, strength: float = 1.0) -> tuple[Step, ...]:
    """The Euler steps for a picture of `width` x `height` pixels, first step first.

    `strength` below 1 starts later, for image-to-image: u goes from `strength` down to 0, and the number of steps stays
    the same (DiffSynth-Studio ``flow_match.py``, ``set_timesteps_ideogram4``; other stacks drop steps instead).
    """
    count = len(sampling.guidance)
    normal = NormalDist(sampling.mu + 0.5 * math.log(width * height / _BASE_PIXELS), sampling.std)
    times = [_time(normal, strength * (1.0 - i / count)) for i in range(count)]
    sigmas = [*(np.float32(1.0 - t) for t in times), np.float32(0.0)]
    return tuple(Step(sigmas[i], sigmas[i + 1], np.float32(guidance)) for i, guidance in enumerate(sampling.guidance))


def _time(normal: NormalDist, u: float) -> float:
    if not 0.0 < u < 1.0:  # outside the domain of the inverse CDF; the clamp gives the value
        return _T_MIN if u >= 1.0 else _T_MAX
    logit = normal.inv_cdf(u)
    return min(max(1.0 / (1.0 + math.exp(min(max(logit, -30.0), 30.0))), _T_MIN), _T_MAX)  # e^30 does not overflow


def round_to_bfloat16(value: np.float32) -> np.float32:
    """Round to the nearest bfloat16, ties to even, and return it as float32 (the value must be finite)."""
    bits = int(np.float32(value).view(np.uint32))
    bits += 0x7FFF + ((bits >> 16) & 1)
    return np.uint32(bits & 0xFFFF0000).view(np.float32)
