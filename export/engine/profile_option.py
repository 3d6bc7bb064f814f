"""The values of ``--profile``: what sizes one optimization profile is for, as a user writes it.

512                          best for sides of 512 pixels, of all that the engines take
512:256..768                 of sides from 256 to 768
512:256..768,text=64         and best for 64 text tokens
512:256..768,text=64:1..128  of 1 to 128
"""

import re
from dataclasses import dataclass

FORMS = "PX, PX:MIN..MAX, or either of them with ,text=TOKENS or ,text=TOKENS:MIN..MAX"
_RANGE = r"(\d{1,9})(?::(\d{1,9})\.\.(\d{1,9}))?"
_PROFILE = re.compile(rf"{_RANGE}(?:,text={_RANGE})?", re.ASCII)


@dataclass(frozen=True)
class Around:
    """A best value, and the ends of the range that it is best of; None for all that there is."""

    best: int
    ends: tuple[int, int] | None


@dataclass(frozen=True)
class ProfileOption:
    """One ``--profile``."""

    side: Around
    """In pixels."""
    text: Around | None
    """In tokens; None where nothing is said of them."""


def parse_profile(text: str) -> ProfileOption:
    """Read a value; ValueError says what forms there are."""
    found = _PROFILE.fullmatch(text)
    if found is None:
        raise ValueError(f"--profile {text!r} is not understood, wanted {FORMS}, such as 512:256..768")
    side, tokens = (_around(*found.groups()[start : start + 3]) for start in (0, 3))
    assert side is not None, "the pattern wants a side"
    return ProfileOption(side, tokens)


def _around(best: str | None, low: str | None, high: str | None) -> Around | None:
    if best is None:
        return None
    return Around(int(best), None if low is None or high is None else (int(low), int(high)))
