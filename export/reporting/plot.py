"""A line plot as SVG: steps from left to right, a logarithmic axis upwards. Knows nothing about what it shows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 1080, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 270, 16, 52
_ROW, _LABEL = 22, 30
"""Height of a line of the legend, and how many characters fit in."""
_MARKED_STEPS = 60
"""With more steps than this, marks would hide the lines."""
_LABELS = 12
"""At most about this many numbers below the plot."""


@dataclass(frozen=True)
class Series:
    """One line."""

    label: str
    color: str
    dashed: bool
    values: Sequence[float]
    """One for each step, from step 1 on; zeros cannot be shown and leave a gap."""


@dataclass(frozen=True)
class _Scale:
    steps: int
    low: int
    high: int
    """Powers of ten at the bottom and the top."""

    def x(self, step: int) -> float:
        width = _WIDTH - _LEFT - _RIGHT
        return _LEFT + width * ((step - 0.5) / self.steps)

    def y(self, value: float) -> float:
        height = _HEIGHT - _TOP - _BOTTOM
        return _TOP + height * (self.high - math.log10(value)) / (self.high - self.low)


def line_plot(series: Sequence[Series], x_label: str, y_label: str) -> str:
    """An ``<svg>`` element with axes, lines and a legend at the right."""
    values = [value for line in series for value in line.values if value > 0]
    low, high = (math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))) if values else (-1, 0)
    scale = _Scale(max((len(line.values) for line in series), default=1) or 1, low, max(high, low + 1))
    parts = [*_axes(scale, x_label, y_label), *(_line(line, scale) for line in series), *_legend(series)]
    title, height = f"{y_label} against {x_label}", max(_HEIGHT, 2 * _TOP + _ROW * len(series))
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )


def _axes(scale: _Scale, x_label: str, y_label: str) -> list[str]:
    left, right, bottom = _LEFT, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for power in range(scale.low, scale.high + 1):
        y = scale.y(10.0**power)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        exponent = str(power).replace("-", "−")
        parts.append(
            f'<text x="{left - 10}" y="{y + 5:.1f}" text-anchor="end">10'
            f'<tspan dy="-5" font-size="10">{exponent}</tspan></text>'
        )
        if power < scale.high and scale.high - scale.low <= 4:
            minor = (scale.y(digit * 10.0**power) for digit in range(2, 10))
            parts += [f'<line class="minor" x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>' for y in minor]
    every = max(1, math.ceil(scale.steps / _LABELS))
    for step in range(1, scale.steps + 1):
        if step == 1 or step % every == 0:
            x = scale.x(step)
            parts.append(f'<line class="axis" x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 5}"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{step}</text>')
    middle_x, middle_y = (left + right) / 2, (_TOP + bottom) / 2
    parts.append(f'<path class="axis" d="M{left} {_TOP}V{bottom}H{right}"/>')
    parts.append(
        f'<text class="label" x="{middle_x}" y="{_HEIGHT - 10}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text class="label" transform="translate(18 {middle_y}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return parts


def _line(line: Series, scale: _Scale) -> str:
    points = [(scale.x(step), scale.y(v)) if v > 0 else None for step, v in enumerate(line.values, start=1)]
    path, drawing = "", False
    for point in points:
        if point:
            path += f"{'L' if drawing else 'M'}{point[0]:.1f} {point[1]:.1f}"
        drawing = point is not None
    marks = "".join(_mark(line, *point) for point in points if point) if scale.steps <= _MARKED_STEPS else ""
    return f'<path class="line" stroke="{line.color}"{_dashes(line)} d="{path}"/>{marks}'


def _legend(series: Sequence[Series]) -> list[str]:
    parts, x = [], _WIDTH - _RIGHT + 24
    for row, line in enumerate(series):
        y = _TOP + 12 + _ROW * row
        label = line.label if len(line.label) <= _LABEL else f"…{line.label[1 - _LABEL :]}"
        parts.append(
            f'<path class="line" stroke="{line.color}"{_dashes(line)} d="M{x} {y}h34"/>{_mark(line, x + 17, y)}'
            f'<text x="{x + 44}" y="{y + 4}">{escape(label)}</text>'
        )
    return parts


def _mark(line: Series, x: float, y: float) -> str:
    fill = "#fff" if line.dashed else line.color
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{fill}" stroke="{line.color}"/>'


def _dashes(line: Series) -> str:
    return ' stroke-dasharray="6 4"' if line.dashed else ""
