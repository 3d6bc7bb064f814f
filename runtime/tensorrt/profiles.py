"""Which of an engine's optimization profiles a call runs in."""

from collections.abc import Mapping
from math import log

from runtime.bundle.graph_specs import EngineSpec, Profile


def choose_profile(spec: EngineSpec, sizes: Mapping[str, int]) -> int | None:
    """Index of the profile for these sizes; None if no profile holds all of them.

    Of those that hold them it is the one whose optimum is nearest, since its kernels were chosen for that: the sum of
    the sizes' distances to it, as ratios. Of equally near ones it is the smallest, which needs the least memory.

    Args:
        spec: of the engine.
        sizes: by name; those that the engine does not have are ignored, and so are its sizes that are not given.
    """
    fitting = [index for index, profile in enumerate(spec.profiles) if _holds(profile, sizes)]
    return min(fitting, key=lambda index: _order(spec.profiles[index], sizes), default=None)


def range_text(spec: EngineSpec, name: str) -> str:
    """What the profiles take of one size: ``16 to 48 or 80 to 128``."""
    spans: list[tuple[int, int]] = []
    for minimum, maximum in sorted((size.minimum, size.maximum) for size in spec.ranges(name)):
        if spans and minimum <= spans[-1][1] + 1:
            spans[-1] = spans[-1][0], max(spans[-1][1], maximum)
        else:
            spans.append((minimum, maximum))
    return " or ".join(f"{minimum} to {maximum}" for minimum, maximum in spans)


def profiles_text(spec: EngineSpec, names: Mapping[str, int]) -> str:
    """What each profile takes of several sizes together: ``H 256 to 768 and W 256 to 768, or H …``."""
    parts = []
    for profile in spec.profiles:
        ranges = [(name, profile.sizes[name]) for name in names if name in profile.sizes]
        parts.append(" and ".join(f"{name} {size.minimum} to {size.maximum}" for name, size in ranges))
    return ", or ".join(parts)


def _holds(profile: Profile, sizes: Mapping[str, int]) -> bool:
    return all(sizes[name] in size for name, size in profile.sizes.items() if name in sizes)


def _order(profile: Profile, sizes: Mapping[str, int]) -> tuple[float, int]:
    pairs = [(sizes[name], size) for name, size in profile.sizes.items() if name in sizes]
    # Rounded: sums of logarithms that are equal on paper are not to the last bit.
    distance = round(sum(abs(log(value / size.optimum)) for value, size in pairs), 9)
    return distance, sum(size.maximum for _, size in pairs)
