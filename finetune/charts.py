"""Charts as inline SVG text: lines, intervals, paired cases. No script, no file, no request.

Colours come from the page's style sheet (classes `arm-...`, `better`, `worse`, `unclear`), so one SVG
serves light, dark and paper; marks differ in shape as well as in colour. Series are labelled where they
end, not in a legend. View boxes are narrow (340 to 400 units) so that text keeps a readable size on a
phone. A line is thinned to at most 300 points by averaging neighbours: a page of ten runs stays below a
megabyte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

MOST_POINTS = 300


@dataclass(frozen=True, slots=True)
class Series:
    """One line: `x` and `y` of equal length, points without a finite y are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "series-0"  # CSS class


@dataclass(frozen=True, slots=True)
class Pair:
    """One case in two arms."""

    name: str
    first: float
    second: float


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str = "step",
    digits: int = 3,
    span: tuple[float, float] | None = None,
) -> str:
    """Lines over a common axis with their last values at their ends.

    Args:
        label: what is shown, read out by screen readers together with first and last values.
        span: least and greatest y of the axis, so that charts side by side compare; None: of these lines.
    """
    lines = [thin(s) for s in series]
    lines = [(s, x, y) for s, (x, y) in zip(series, lines, strict=True) if len(x)]
    if not lines:
        return ""
    labels = [f"{s.name} {number(float(y[-1]), digits)}".strip() for s, _, y in lines]
    width, height, left, top, bottom = 340, 210, 42, 12, 32
    right = 14 + 6.6 * max(len(text) for text in labels)  # room for the widest label at 11 units a line
    xs, ys = np.concatenate([x for _, x, _ in lines]), np.concatenate([y for _, _, y in lines])
    y_ticks = ticks(*(span or (float(ys.min()), float(ys.max()))), 4)
    x_ticks = [t for t in ticks(0.0, float(xs.max()), 3) if t <= xs.max()]
    sx = Scale(0.0, float(xs.max()), left, width - right)
    sy = Scale(y_ticks[0], y_ticks[-1], height - bottom, top)
    parts = [grid(y_ticks, sy, left, width - right), *_x_axis(x_ticks, sx, height - bottom, x_label)]
    ends = spread([sy(float(y[-1])) for _, _, y in lines], 13.0, top, height - bottom)
    for (s, x, y), text, end in zip(lines, labels, ends, strict=True):
        points = " ".join(f"{sx(a):.1f},{sy(b):.1f}" for a, b in zip(x, y, strict=True))
        style = escape(s.style, quote=True)
        parts.append(f'<polyline class="line {style}" points="{points}"/>')
        parts.append(f'<circle class="dot {style}" cx="{sx(x[-1]):.1f}" cy="{sy(y[-1]):.1f}" r="3"/>')
        parts.append(
            f'<text class="end {style}" x="{sx(x[-1]) + 6:.1f}" y="{end + 4:.1f}">{escape(text)}</text>'
        )
    told = "; ".join(
        f"{s.name or 'value'} from {number(float(y[0]), digits)} at {x_label} {number(float(x[0]), 0)} "
        f"to {number(float(y[-1]), digits)} at {x_label} {number(float(x[-1]), 0)}"
        for s, x, y in lines
    )
    return svg(width, height, f"{label}: {told}", parts)


def interval_mark(value: float, low: float, high: float, limit: float, label: str) -> str:
    """One row of a forest plot: zero in the middle, right is better for the first arm, `limit` at the edges.

    Signs must already be such that positive is better. Without an interval only the point is drawn.
    """
    width, height, middle = 170, 22, 11
    scale = Scale(-limit, limit, 6, width - 6)
    style = verdict_class(low, high)
    parts = [f'<line class="zero" x1="{scale(0):.1f}" x2="{scale(0):.1f}" y1="0" y2="{height}"/>']
    if math.isfinite(low) and math.isfinite(high):
        a, b = scale(max(low, -limit)), scale(min(high, limit))
        parts.append(f'<line class="whisker {style}" x1="{a:.1f}" x2="{b:.1f}" y1="{middle}" y2="{middle}"/>')
    centre = scale(min(max(value, -limit), limit))
    parts.append(f'<circle class="dot {style}" cx="{centre:.1f}" cy="{middle}" r="4.5"/>')
    return svg(width, height, label, parts, kind="mark")


def verdict_class(low: float, high: float) -> str:
    """CSS class of an interval whose positive side is better: better, worse, or unclear."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "unclear"
    return "better" if low > 0 else "worse" if high < 0 else "unclear"


def paired_dots(
    pairs: Sequence[Pair], arms: tuple[str, str], *, label: str, axis: str, bounds: tuple[float, float | None]
) -> str:
    """Every case as two joined marks, ordered by the second arm: disc = first arm, square = second arm.

    A line that rises from the square to the disc is a case in which the first arm has the higher value.
    """
    pairs = sorted((p for p in pairs if math.isfinite(p.first + p.second)), key=lambda p: (p.second, p.first))
    if not pairs:
        return ""
    width, height, left, right, top, bottom = 400, 230, 42, 14, 26, 30
    values = [v for p in pairs for v in (p.first, p.second)]
    top_value = bounds[1] if bounds[1] is not None and max(values) > 0.5 * bounds[1] else max(values)
    y_ticks = ticks(min(values), top_value, 4)
    sx = Scale(-0.5, len(pairs) - 0.5, left, width - right)
    sy = Scale(y_ticks[0], y_ticks[-1], height - bottom, top)
    size = max(1.5, min(4.0, 130 / len(pairs)))
    parts = [grid(y_ticks, sy, left, width - right)]
    for index, pair in enumerate(pairs):
        x, a, b = sx(index), sy(pair.first), sy(pair.second)
        change = "rise" if pair.first > pair.second else "fall"
        told = f"{pair.name}: {arms[0]} {number(pair.first)}, {arms[1]} {number(pair.second)}"
        parts.append(
            f"<g><title>{escape(told)}</title>"
            f'<line class="join {change}" x1="{x:.1f}" x2="{x:.1f}" y1="{b:.1f}" y2="{a:.1f}"/>'
            f'<rect class="dot {arm_class(arms[1])}" x="{x - size * 0.85:.1f}" y="{b - size * 0.85:.1f}" '
            f'width="{1.7 * size:.1f}" height="{1.7 * size:.1f}"/>'
            f'<circle class="dot {arm_class(arms[0])}" cx="{x:.1f}" cy="{a:.1f}" r="{size:.1f}"/></g>'
        )
    parts += _pair_key(arms, left)
    parts.append(f'<text class="axis" x="{width - right}" y="14" text-anchor="end">{escape(axis)}</text>')
    floor = f"{len(pairs)} cases, ordered by {arms[1]}"
    parts.append(f'<text class="axis" x="{left}" y="{height - 10}">{escape(floor)}</text>')
    up = sum(p.first > p.second for p in pairs)
    down = sum(p.first < p.second for p in pairs)
    told = f"{label}: of {len(pairs)} cases {arms[0]} is higher in {up} and lower in {down}"
    return svg(width, height, told, parts)


def arm_class(arm: str) -> str:
    """CSS class of an arm; arms other than the two usual ones share the neutral colour."""
    return f"arm-{arm}" if arm in ("pretrained", "scratch") else "arm-other"


def thin(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """Finite points of a series, averaged in groups of neighbours above 300 points; ends are kept."""
    x, y = np.asarray(series.x, float), np.asarray(series.y, float)
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    if len(x) <= MOST_POINTS:
        return x, y
    groups = np.array_split(np.arange(1, len(x) - 1), MOST_POINTS - 2)
    means = [(x[g].mean(), y[g].mean()) for g in groups]
    return np.array([x[0], *(m[0] for m in means), x[-1]]), np.array([y[0], *(m[1] for m in means), y[-1]])


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round tick values that enclose low..high, about `count` steps apart."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        pad = 0.5 * abs(high) or 0.5
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart to at least `gap`, in their order, keeping them in low..high as long as they fit."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = [0.0] * len(positions)
    floor = low
    for i in order:
        placed[i] = max(positions[i], floor)
        floor = placed[i] + gap
    ceiling = high
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def number(value: float, digits: int = 3) -> str:
    """A number for reading: fixed digits below 1,000, then shortened; a true minus, a dash for nan."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 1_000_000:
        text = f"{value / 1_000_000:.3g}M"
    elif abs(value) >= 10_000:
        text = f"{value / 1000:.3g}k"
    elif abs(value) >= 1000:
        text = f"{value:.0f}"
    elif value != 0 and abs(value) < 10**-digits / 2:
        text = f"{value:.1e}"
    else:
        text = f"{value:.{digits}f}"
    return text.replace("-", "−")


@dataclass(frozen=True, slots=True)
class Scale:
    """Values low..high to coordinates start..stop."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1.0
        return self.start + (float(value) - self.low) / span * (self.stop - self.start)


def grid(values: Sequence[float], scale: Scale, left: float, right: float) -> str:
    """Horizontal lines at round values, with the values beside them."""
    digits = 0 if len(values) < 2 else max(0, min(6, -math.floor(math.log10(values[1] - values[0]) + 1e-9)))
    if len(values) > 1 and not math.isclose(round(values[1] - values[0], digits), values[1] - values[0]):
        digits += 1  # steps of 2.5
    lines = []
    for value in values:
        y = scale(value)
        lines.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        text = number(value, digits) if value else "0"
        lines.append(f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    return "".join(lines)


def _x_axis(values: Sequence[float], scale: Scale, floor: float, label: str) -> list[str]:
    parts = []
    for position, value in enumerate(values):
        if position and scale(value) - scale(values[0]) < 12 + 6.6 * len(f"{label} 0"):
            continue  # would touch the first label
        name = f"{label} 0" if position == 0 else number(value, 0)
        anchor = "start" if position == 0 else "middle"
        place = f'x="{scale(value):.1f}" y="{floor + 18}" text-anchor="{anchor}"'
        parts.append(f'<text class="tick" {place}>{escape(name)}</text>')
    return parts


def _pair_key(arms: tuple[str, str], left: float) -> list[str]:
    """Names of the two marks above the plot, in the marks' own shapes and colours."""
    second = left + 16 + 7 * len(arms[0]) + 12
    return [
        f'<circle class="dot {arm_class(arms[0])}" cx="{left + 4}" cy="10" r="4"/>',
        f'<text class="end {arm_class(arms[0])}" x="{left + 12}" y="14">{escape(arms[0])}</text>',
        f'<rect class="dot {arm_class(arms[1])}" x="{second}" y="6.5" width="7" height="7"/>',
        f'<text class="end {arm_class(arms[1])}" x="{second + 12}" y="14">{escape(arms[1])}</text>',
    ]


def svg(width: int, height: int, label: str, parts: Sequence[str], *, kind: str = "chart") -> str:
    """A picture of width x height units that says `label` to those who do not see it."""
    told = escape(label, quote=True)
    head = f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{told}">'
    return f"{head}{''.join(parts)}</svg>"
