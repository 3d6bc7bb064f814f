"""Colours that can be read on one another, by the contrast ratio of WCAG 2."""

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
READABLE = 4.5
"""Least contrast of small letters: WCAG 2.1, success criterion 1.4.3."""
VISIBLE = 1.5
"""Least contrast of a line that is to be seen at all."""
_STEPS = 16


def parse_colour(text: str) -> Colour:
    """The colour that ``#RRGGBB`` means."""
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """`share` of `one`, the rest of `other`."""
    red, green, blue = (round(share * a + (1 - share) * b) for a, b in zip(one, other, strict=True))
    return red, green, blue


def contrast(one: Colour, other: Colour) -> float:
    """From 1 for two equal colours to 21 for black and white."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def ink(colour: Colour, paper: Colour) -> Colour:
    """The colour, as far from it as letters on `paper` need to be readable."""
    away = max((BLACK, WHITE), key=lambda end: contrast(end, paper))
    shares = (mix(away, colour, step / _STEPS) for step in range(_STEPS + 1))
    return next((shade for shade in shares if contrast(shade, paper) >= READABLE), away)


def _luminance(colour: Colour) -> float:
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
