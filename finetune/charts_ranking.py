"""Charts of a ranking as inline SVG: the critical-difference diagram, and how firm each rank is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from .charts import Scale, number, svg
from .critical_difference import CriticalDifference

_WIDTH, _LINE, _AXIS = 540, 19, 34


def critical_difference_diagram(found: CriticalDifference, *, label: str) -> str:
    """Mean ranks on an axis, 1 on the left; a bar joins methods that the test does not tell apart."""
    count = len(found.methods)
    longest = max(len(name) for name in found.methods)
    side = min(210.0, 34 + 6.6 * longest)
    scale = Scale(1, count, side, _WIDTH - side)
    nemenyi = math.isfinite(found.distance)
    axis = _AXIS + (22 if nemenyi else 0)
    bars = axis + 12 + 8 * len(found.cliques)
    left = math.ceil(count / 2)
    height = bars + _LINE * left + 14
    parts = [f'<line class="line axis" x1="{scale(1):.1f}" x2="{scale(count):.1f}" y1="{axis}" y2="{axis}"/>']
    for rank in range(1, count + 1):
        x = f"{scale(rank):.1f}"
        parts.append(f'<line class="line axis" x1="{x}" x2="{x}" y1="{axis - 5}" y2="{axis}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{axis - 9}" text-anchor="middle">{rank}</text>')
    if nemenyi:
        parts += _distance(found.distance, scale, count)
    for position, (first, last) in enumerate(found.cliques):
        y = axis + 9 + 8 * position
        a, b = scale(found.ranks[first]) - 4, scale(found.ranks[last]) + 4
        parts.append(f'<line class="clique" x1="{a:.1f}" x2="{b:.1f}" y1="{y}" y2="{y}"/>')
    for index, (name, rank) in enumerate(zip(found.methods, found.ranks, strict=True)):
        on_left = index < left
        y = bars + _LINE * ((index if on_left else count - 1 - index) + 0.7)
        x, end = scale(rank), side - 6 if on_left else _WIDTH - side + 6
        anchor, text = ("end", end - 5) if on_left else ("start", end + 5)
        parts.append(f'<polyline class="leader" points="{x:.1f},{axis} {x:.1f},{y:.1f} {end:.1f},{y:.1f}"/>')
        told = f"{escape(name)} {number(rank, 2)}"
        parts.append(
            f'<text class="name" x="{text:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{told}</text>'
        )
    groups = "; ".join(" = ".join(found.methods[a : b + 1]) for a, b in found.cliques) or "none"
    listed = ", ".join(f"{m} {number(r, 2)}" for m, r in zip(found.methods, found.ranks, strict=True))
    return svg(_WIDTH, height, f"{label}: mean ranks {listed}; not told apart: {groups}", parts)


def _distance(distance: float, scale: Scale, count: int) -> list[str]:
    """The critical distance as a ruler above the axis, no longer than the axis."""
    stop = scale(min(1 + distance, count))
    sign = "CD" if 1 + distance <= count else "CD >"
    return [
        f'<line class="line axis" x1="{scale(1):.1f}" x2="{stop:.1f}" y1="20" y2="20"/>',
        f'<line class="line axis" x1="{scale(1):.1f}" x2="{scale(1):.1f}" y1="16" y2="24"/>',
        f'<line class="line axis" x1="{stop:.1f}" x2="{stop:.1f}" y1="16" y2="24"/>',
        f'<text class="tick" x="{(scale(1) + stop) / 2:.1f}" y="12" text-anchor="middle">'
        f"{sign} {number(distance if sign == 'CD' else count - 1, 2)}</text>",
    ]


def rank_stability_chart(shares: Mapping[str, Sequence[float]], *, label: str) -> str:
    """Share of the bootstrap draws in which a method held each rank: the area of a disc.

    Args:
        shares: method -> [K] share of rank 1 .. K, best method first, as `ranking.rank_stability` gives.
    """
    if not shares:
        return ""
    count = len(shares)
    left = 16 + 6.6 * max(len(name) for name in shares)
    step = min(44.0, (_WIDTH - left - 20) / count)
    row = min(step, 30.0)
    parts = []
    for rank in range(1, count + 1):
        x = left + step * (rank - 0.5)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="6" y2="{6 + row * count:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{row * count + 22:.1f}" text-anchor="middle">{rank}</text>'
        )
    for line, (name, held) in enumerate(shares.items()):
        y = 6 + row * (line + 0.5)
        parts.append(
            f'<text class="name" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>'
        )
        for rank, share in enumerate(held, start=1):
            if share > 0:
                x, radius = left + step * (rank - 0.5), math.sqrt(share) * (row / 2 - 1)
                told = f"{name}: rank {rank} in {100 * share:.0f} % of the draws"
                parts.append(
                    f"<g><title>{escape(told)}</title>"
                    f'<circle class="dot series-0" cx="{x:.1f}" cy="{y:.1f}" r="{max(radius, 0.8):.1f}"/></g>'
                )
    listed = "; ".join(
        f"{name} " + ", ".join(f"{100 * s:.0f} % rank {r}" for r, s in enumerate(held, 1) if s > 0.005)
        for name, held in shares.items()
    )
    return svg(_WIDTH, round(row * count + 34), f"{label}: {listed}", parts)
