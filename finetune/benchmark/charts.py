"""Charts of a leaderboard as inline SVG: values with their intervals, one encoder below the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ..charts import Scale, number, svg, ticks

_WIDTH, _ROW, _TOP, _BOTTOM = 540, 22, 8, 26


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a chart; `low` and `high` are nan where there is no interval."""

    name: str
    value: float
    low: float
    high: float
    style: str = "series-0"  # CSS class
    square: bool = False  # instead of a disc


def interval_rows(
    rows: Sequence[Row],
    *,
    label: str,
    digits: int = 3,
    bounds: tuple[float, float | None] = (-math.inf, None),
) -> str:
    """Values with their intervals, one below the other on a common axis.

    Args:
        label: what is shown, read out by screen readers with all values.
        bounds: of the metric; the axis ends there.
    """
    rows = [row for row in rows if math.isfinite(row.value)]
    if not rows:
        return ""
    left, right = round(16 + 6.6 * max(len(row.name) for row in rows)), _WIDTH - 56
    reach = [v for row in rows for v in (row.value, row.low, row.high) if math.isfinite(v)]
    top = math.inf if bounds[1] is None else bounds[1]
    drawn = [m for m in ticks(min(reach), max(reach), 4) if bounds[0] <= m <= top]
    scale = Scale(min(*drawn, *reach), max(*drawn, *reach), left, right)
    floor = _TOP + _ROW * len(rows)
    parts = []
    for mark in drawn:
        x = f"{scale(mark):.1f}"
        shown = number(mark, 3).rstrip("0").rstrip(".") if mark % 1 else number(mark, 0)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{floor}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{floor + 16}" text-anchor="middle">{shown}</text>')
    for index, row in enumerate(rows):
        parts += _row(row, _TOP + _ROW * (index + 0.5), scale, left, digits)
    told = "; ".join(f"{row.name} {number(row.value, digits)}" for row in rows)
    return svg(_WIDTH, floor + _BOTTOM, f"{label}: {told}", parts)


def _row(row: Row, y: float, scale: Scale, left: float, digits: int) -> list[str]:
    style, x, end = escape(row.style, quote=True), scale(row.value), scale(row.value)
    parts = [f'<text x="{left - 10:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(row.name)}</text>']
    if math.isfinite(row.low + row.high):
        start, end = scale(row.low), scale(row.high)
        place = f'x1="{start:.1f}" x2="{end:.1f}" y1="{y:.1f}" y2="{y:.1f}"'
        parts.append(f'<line class="whisker {style}" {place}/>')
    if row.square:
        place = f'x="{x - 4:.1f}" y="{y - 4:.1f}"'
        parts.append(f'<rect class="dot {style}" {place} width="8" height="8"/>')
    else:
        parts.append(f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
    told = number(row.value, digits)
    return [*parts, f'<text class="end {style}" x="{max(end, x) + 8:.1f}" y="{y + 4:.1f}">{told}</text>']
