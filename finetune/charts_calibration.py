"""Reliability diagram as inline SVG: what was said against what came true, with how often it was said."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .charts import Scale, arm_class, number, svg

_SIDE, _LEFT, _TOP, _FLOOR, _BARS = 230, 46, 10, 44, 34  # the square, its margins, height of the bars


def reliability_diagram(bins: Sequence[Mapping[str, Any]], arm: str, *, label: str) -> str:
    """One arm's bins: the diagonal is right, above it the probabilities are too timid, below too sure.

    Args:
        bins: as `calibration.calibration` gives them.
    """
    if not bins:
        return ""
    width, base = _LEFT + _SIDE + 12, _TOP + _SIDE
    sx, sy = Scale(0.0, 1.0, _LEFT, _LEFT + _SIDE), Scale(0.0, 1.0, base, _TOP)
    most = max(int(row["n"]) for row in bins)
    style = arm_class(arm)
    parts = [*_axes(sx, sy, base), f'<g class="{style}">']
    for row in bins:
        x, y = sx(row["probability"]), sy(row["right"])
        told = f"said {number(row['probability'], 2)}, true in {number(row['right'], 2)} of {int(row['n'])}"
        bar = _BARS * int(row["n"]) / most
        a, b = sx(row["low"]), sx(row["high"])
        parts.append(
            f"<g><title>{told}</title>"
            f'<rect class="bar" x="{a + 0.5:.1f}" y="{base + _BARS + 4 - bar:.1f}" width="{b - a - 1:.1f}" '
            f'height="{bar:.1f}"/>'
        )
        low, high = row.get("right_low"), row.get("right_high")
        if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
            parts.append(
                f'<line class="line" x1="{x:.1f}" x2="{x:.1f}" y1="{sy(low):.1f}" y2="{sy(high):.1f}"/>'
            )
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/></g>')
    parts.append("</g>")
    told = "; ".join(
        f"said {number(r['probability'], 2)} true {number(r['right'], 2)} n {int(r['n'])}" for r in bins
    )
    return svg(width, base + _BARS + _FLOOR, f"{label}: {told}", parts, kind="chart square")


def _axes(sx: Scale, sy: Scale, base: float) -> list[str]:
    parts = []
    floor = base + _BARS + 4
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        text = "0" if value == 0 else f"{value:g}"
        y, x = sy(value), sx(value)
        parts.append(f'<line class="grid" x1="{sx(0)}" x2="{sx(1)}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{sx(0) - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{floor + 15}" text-anchor="middle">{text}</text>')
    parts.append(f'<line class="zero" x1="{sx(0)}" y1="{sy(0)}" x2="{sx(1)}" y2="{sy(1)}"/>')
    parts.append(f'<line class="grid" x1="{sx(0)}" x2="{sx(1)}" y1="{floor}" y2="{floor}"/>')
    middle = (sx(0) + sx(1)) / 2
    parts.append(
        f'<text class="axis" x="{middle}" y="{floor + 32}" text-anchor="middle">probability that was '
        "given</text>"
    )
    up = (sy(0) + sy(1)) / 2
    parts.append(
        f'<text class="axis" x="12" y="{up}" text-anchor="middle" transform="rotate(-90 12 {up})">share that '
        "came true</text>"
    )
    return parts
