"""Charts of a leaderboard as inline SVG: intervals of all encoders on one axis, ranks with their range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ..charts import number, ticks

_WIDTH, _ROW, _TOP, _BOTTOM = 540, 22, 8, 30


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a chart; `low` and `high` are nan where there is no interval."""

    name: str
    value: float
    low: float
    high: float
    style: str = "series-0"  # CSS class; a square instead of a disc marks a baseline
    square: bool = False


def interval_rows(
    rows: Sequence[Row], *, label: str, digits: int = 3, bounds: tuple[float, float] | None = None
) -> str:
    """Values with their intervals, one below the other on a common axis.

    Args:
        label: what is shown, read out by screen readers with all values.
        bounds: of the axis; None: what the intervals need.
    """
    rows = [row for row in rows if math.isfinite(row.value)]
    if not rows:
        return ""
    left = 16 + 6.6 * max(len(row.name) for row in rows)
    right = _WIDTH - 52
    reach = [v for row in rows for v in (row.value, row.low, row.high) if math.isfinite(v)]
    marks = ticks(*(bounds or (min(reach), max(reach))), 4)
    floor = _TOP + _ROW * len(rows)

    def place(value: float) -> float:
        return left + (value - marks[0]) / (marks[-1] - marks[0]) * (right - left)

    parts = []
    for mark in marks:
        x = f"{place(mark):.1f}"
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{floor}"/>')
        shown = number(mark, 2 if marks[1] - marks[0] < 1 else 1).rstrip("0").rstrip(".") or "0"
        parts.append(f'<text class="tick" x="{x}" y="{floor + 16}" text-anchor="middle">{shown}</text>')
    for index, row in enumerate(rows):
        parts.append(_row(row, _TOP + _ROW * (index + 0.5), place, left, digits))
    told = "; ".join(f"{row.name} {number(row.value, digits)}" for row in rows)
    head = (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {floor + _BOTTOM}" role="img" '
        f'aria-label="{escape(f"{label}: {told}", quote=True)}">'
    )
    return f"{head}{''.join(parts)}</svg>"


def _row(row: Row, y: float, place, left: float, digits: int) -> str:
    style = escape(row.style, quote=True)
    x = place(row.value)
    parts = [f'<text x="{left - 10:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(row.name)}</text>']
    end = x
    if math.isfinite(row.low + row.high):
        end = place(row.high)
        parts.append(
            f'<line class="whisker {style}" x1="{place(row.low):.1f}" x2="{end:.1f}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/>'
        )
    if row.square:
        parts.append(f'<rect class="dot {style}" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>')
    else:
        parts.append(f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
    told = number(row.value, digits)
    parts.append(f'<text class="end {style}" x="{max(end, x) + 8:.1f}" y="{y + 4:.1f}">{told}</text>')
    return "".join(parts)
