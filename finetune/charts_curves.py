"""Label-efficiency curves as inline SVG: score against labelled subjects on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from .charts import Scale, arm_class, grid, number, spread, svg, ticks
from .statistics import Interval

_WIDTH, _HEIGHT, _LEFT, _TOP, _FLOOR = 400, 260, 46, 12, 48


def label_curve(
    lines: Mapping[str, Sequence[tuple[float, str, Interval]]], *, label: str, axis: str, digits: int = 3
) -> str:
    """Lines with intervals.

    Args:
        lines: arm -> (labelled subjects, name of the size, value) by ascending number.
        axis: what the numbers are.
    """
    points = [point for line in lines.values() for point in line if point[0] > 0]
    values = [v for _, _, i in points for v in (i.mean, i.low, i.high) if math.isfinite(v)]
    if not points or not values:
        return ""
    right = _WIDTH - 14 - 6.6 * max(len(arm) for arm in lines)
    places = sorted({(x, name) for x, name, _ in points})
    marks = ticks(min(values), max(values), 4)
    low, high = math.log(places[0][0]), math.log(places[-1][0])
    sx = Scale(low, high if high > low else low + 1, _LEFT + 10, right - 8)
    sy = Scale(marks[0], marks[-1], _HEIGHT - _FLOOR, _TOP)
    parts = [grid(marks, sy, _LEFT, right), *_sizes(places, sx)]
    drawn = [(arm, [p for p in line if math.isfinite(p[2].mean)]) for arm, line in lines.items()]
    drawn = [(arm, line) for arm, line in drawn if line]
    ends = spread([sy(line[-1][2].mean) for _, line in drawn], 13.0, _TOP, _HEIGHT - _FLOOR)
    count = len(drawn)
    for index, ((arm, line), end) in enumerate(zip(drawn, ends, strict=True)):
        aside = 3.0 * (index - (count - 1) / 2)  # intervals of arms at one size stand side by side
        parts += _line(arm, line, sx, sy, aside, digits)
        x = sx(math.log(line[-1][0])) + 1.5 * (count - 1) + 8
        parts.append(f'<text class="end {arm_class(arm)}" x="{x:.1f}" y="{end + 4:.1f}">{escape(arm)}</text>')
    middle = (_LEFT + right) / 2
    parts.append(
        f'<text class="axis" x="{middle:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">'
        "labelled subjects, and share of all or number a class</text>"
    )
    told = "; ".join(
        f"{arm} " + ", ".join(f"{number(i.mean, digits)} at {name}" for _, name, i in line)
        for arm, line in drawn
    )
    return svg(_WIDTH, _HEIGHT, f"{label}, {axis}: {told}", parts)


def _line(
    arm: str,
    line: Sequence[tuple[float, str, Interval]],
    sx: Scale,
    sy: Scale,
    aside: float,
    digits: int,
) -> list[str]:
    style = arm_class(arm)
    places = [(sx(math.log(x)) + aside, value, name) for x, name, value in line]
    joined = " ".join(f"{x:.1f},{sy(value.mean):.1f}" for x, value, _ in places)
    parts = [f'<g class="{style}"><polyline class="line" points="{joined}"/>']
    for x, value, name in places:
        whisker = ""
        if math.isfinite(value.low) and math.isfinite(value.high):
            whisker = (
                f'<line class="line" x1="{x:.1f}" x2="{x:.1f}" y1="{sy(value.low):.1f}" '
                f'y2="{sy(value.high):.1f}"/>'
            )
        told = f"{arm}, {name}: {number(value.mean, digits)}"
        parts.append(
            f"<g><title>{escape(told)}</title>{whisker}"
            f'<circle class="dot" cx="{x:.1f}" cy="{sy(value.mean):.1f}" r="3.5"/></g>'
        )
    return [*parts, "</g>"]


def _sizes(places: Sequence[tuple[float, str]], sx: Scale) -> list[str]:
    """Number of subjects and name of each size; what would touch the label before is left out."""
    parts, last = [], -math.inf
    for subjects, name in places:
        x, text = sx(math.log(subjects)), number(subjects, 0)
        half = 3.3 * max(len(text), len(name))
        if x - half < last + 4:
            continue
        last = x + half
        for line, word in enumerate((text, name)):
            y = _HEIGHT - _FLOOR + 15 + 13 * line
            parts.append(f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="middle">{escape(word)}</text>')
    return parts
