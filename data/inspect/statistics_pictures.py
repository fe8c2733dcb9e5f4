"""Draw what `statistics` found as PNG: counts, small multiples of every quantity, labels of every source.

Small multiples share the axis of their column, so that sources are compared at a glance; each curve is scaled
to its own peak, and the number beside it is the median. More than 40 sources go on several pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..atomic import replacing
from .statistics import INTENSITY, QUANTITIES, by

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, FILL = "#1f2933", "#7b8794", "#3b7ea1"
LANES = {
    "low": "#8cb4c9",
    "middle": "#1f2933",
    "high": "#c8553d",
}  # percentiles of intensity, one above another
ROWS = 40  # sources on a page
LISTED = 24  # bars in a panel of counts
COLUMNS: list[tuple[str, tuple[str, ...], str]] = [
    ("size", ("side",), "longer side in plane, px"),
    ("slices", ("slices",), "slices"),
    ("spacing", ("spacing",), "spacing in plane, mm"),
    ("across", ("slice_spacing",), "spacing across slices, mm"),
    ("intensity", ("low", "middle", "high"), "intensity, stored units\n95th, 50th, 5th percentile"),
    ("foreground", ("foreground",), "share of foreground"),
    ("bytes", ("bytes",), "stored bytes a sample"),
    ("ratio", ("ratio",), "raw / stored bytes"),
]


def draw(report: dict[str, Any], out: Path) -> list[Path]:
    """Write the pictures of a report of `statistics` into the folder `out`; returns their paths."""
    names = list(report["sources"])
    pages = [names[first : first + ROWS] for first in range(0, len(names), ROWS)]
    figures = {"counts": _counts(report)}
    for number, page in enumerate(pages, 1):
        figures["quantities" if len(pages) == 1 else f"quantities-{number}"] = _quantities(report, page)
    labelled = [name for name in names if report["sources"][name]["labels"]]
    if labelled:
        figures["labels"] = _labels(report, labelled)
    return [save(figure, out / f"{name}.png") for name, figure in figures.items()]


def _counts(report: dict[str, Any]) -> Figure:
    """Samples by source, modality, organ, licence and split."""
    panels = [("source", {name: source["samples"] for name, source in report["sources"].items()})]
    panels += [(name, by(report, name)) for name in ("modality", "organ", "licence", "split")]
    shown = [(name, cut(values)) for name, values in panels]
    left, right = [shown[0], *shown[3:]], shown[1:3]
    heights = [sum(len(values) + 3 for _, values in column) for column in (left, right)]
    figure = new_figure(13, 0.6 + 0.22 * max(heights))
    columns: Any = figure.subfigures(1, 2, wspace=0.02)
    for part, column, height in zip(columns, (left, right), heights, strict=True):
        ratios = [len(values) + 3 for _, values in column]
        rest = [max(heights) - height] if height < max(heights) else []  # so that all bars are as thick
        axes = part.subplots(len(ratios) + len(rest), 1, height_ratios=ratios + rest, squeeze=False)[:, 0]
        for one, (name, values) in zip(axes[: len(ratios)], column, strict=True):
            bars(one, f"samples by {name} (logarithmic)", values, logarithmic=True)
        for one in axes[len(ratios) :]:
            one.axis("off")
    figure.suptitle(_title(report), x=0.01, ha="left", fontsize=11, color=INK)
    return figure


def bars(axes: Axes, title: str, values: dict[str, int], *, logarithmic: bool = False) -> None:
    """Horizontal bars, each with its number."""
    names, counts = list(values), [float(count) for count in values.values()]
    most = max(counts, default=1.0)
    axes.barh(range(len(names)), [max(count, 0.7) for count in counts], color=FILL, height=0.72)
    axes.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xlim(0.7 if logarithmic else 0, max(2.0, most) * (4 if logarithmic else 1.2))
    for place, count in enumerate(counts):
        axes.annotate(
            f"{count:,.0f}", (max(count, 0.7), place), (4, 0), textcoords="offset points", va="center",
            fontsize=7.5, color=INK,
        )  # fmt: skip
    axes.set_title(title, loc="left", fontsize=9.5, color=INK)
    axes.xaxis.set_visible(False)
    _bare(axes, "left")


def _quantities(report: dict[str, Any], names: Sequence[str]) -> Figure:
    """One row a source, one column a quantity."""
    columns = [c for c in COLUMNS if any(_has(report, name, c[1]) for name in report["sources"])]
    figure = new_figure(2.6 + 1.55 * len(columns), 1.3 + 0.52 * len(names))
    grid = figure.subplots(
        len(names), len(columns), sharex="col", squeeze=False, gridspec_kw={"wspace": 0.12, "hspace": 0.08}
    )
    for row, name in zip(grid, names, strict=True):
        source = report["sources"][name]
        label = f"{_short(name)}\n{source['samples']:,} samples"
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=7.5, color=INK, labelpad=6)
        for axes, (_, quantities, _) in zip(row, columns, strict=True):
            _curves(axes, report, name, quantities)
    for number, (_, quantities, title) in enumerate(columns):
        grid[0, number].set_title(title, fontsize=7.5, color=INK)
        _scale(grid[-1, number], QUANTITIES[quantities[0]][1], report["quantities"][quantities[0]]["edges"])
    figure.suptitle(_title(report), x=0.01, ha="left", fontsize=11, color=INK)
    return figure


def _curves(axes: Axes, report: dict[str, Any], name: str, quantities: Sequence[str]) -> None:
    """The histograms of one source, each in its lane and scaled to its own peak, and the median above."""
    axes.set_yticks([])
    axes.set_ylim(0, len(quantities) * 1.55)
    axes.tick_params(axis="x", which="both", labelbottom=False, length=0)
    _bare(axes, "bottom")
    found = report["sources"][name]["quantities"]
    if not any(quantity in found for quantity in quantities):
        axes.text(0.5, 0.35, "–", transform=axes.transAxes, ha="center", fontsize=8, color=SOFT)
        return
    for lane, quantity in enumerate(quantities):
        if quantity not in found:
            continue
        counts = np.array(found[quantity]["histogram"], float)
        edges = np.array(report["quantities"][quantity]["edges"])
        shown = lane + 0.9 * counts / max(1, counts.max())
        axes.stairs(shown, edges, baseline=lane, fill=True, color=LANES.get(quantity, FILL), alpha=0.85)
    middle = _number(found[quantities[len(quantities) // 2]]["p50"])
    axes.text(0.99, 1.0, middle, transform=axes.transAxes, ha="right", va="top", fontsize=7, color=INK)


def _scale(axes: Axes, kind: str, edges: Sequence[float]) -> None:
    """Scale, limits and at most five round ticks of a column."""
    if not edges:
        return
    low, high = edges[0], edges[-1]
    if kind == "log":
        axes.set_xscale("log")
        decades = math.log10(high / low)
        steps = (1, 2, 5) if decades < 1.8 else (1,)
        ticks = [s * 10.0**p for p in range(-6, 13, 2 if decades > 4.5 else 1) for s in steps]
    elif kind == "asinh":
        axes.set_xscale("asinh", linear_width=INTENSITY)
        ticks = [-1e4, -1e3, -100.0, 0.0, 100.0, 1e3, 1e4]
    else:
        ticks = np.linspace(0, 1, 3).tolist() if 0 <= high <= 1.1 else [low, high]
    axes.set_xlim(low, high)
    shown = [tick for tick in ticks if low <= tick <= high]
    axes.set_xticks(shown, [_number(tick) for tick in shown])
    axes.minorticks_off()
    axes.tick_params(axis="x", labelsize=6.5, labelbottom=True, colors=SOFT, length=2)


def _labels(report: dict[str, Any], names: Sequence[str]) -> Figure:
    """Values of every label of every source."""
    panels = [
        (f"{name} · {label}", values)
        for name in names
        for label, values in report["sources"][name]["labels"].items()
    ]
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    tallest = [
        max(len(cut(values, 12)) for _, values in panels[row * across : (row + 1) * across])
        for row in range(down)
    ]
    figure = new_figure(4.6 * across, 0.6 + sum(0.22 * n + 0.75 for n in tallest))
    grid = figure.subplots(down, across, squeeze=False, height_ratios=[n + 2.5 for n in tallest])
    for number, axes in enumerate(grid.flat):
        if number >= len(panels):
            axes.axis("off")
            continue
        title, values = panels[number]
        bars(axes, _short(title, 52), _numbered(cut(values, 12)))
        axes.set_ylim(tallest[number // across] - 0.4, -0.6)  # bars as thick as their neighbours'
    figure.suptitle(_title(report) + " · labels", x=0.01, ha="left", fontsize=11, color=INK)
    return figure


def cut(values: dict[str, int], most: int = LISTED) -> dict[str, int]:
    """The most frequent values, the rest under one name."""
    ordered = sorted(values.items(), key=lambda item: -item[1])
    if len(ordered) <= most:
        return dict(ordered)
    rest = ordered[most - 1 :]
    return dict(ordered[: most - 1]) | {f"({len(rest)} others)": sum(count for _, count in rest)}


def _numbered(values: dict[str, int]) -> dict[str, int]:
    """Values that are numbers in their order, the rest behind; classes as they are."""
    others = {name: count for name, count in values.items() if name.startswith("(")}
    try:
        numbers = sorted((name for name in values if name not in others), key=float)
    except ValueError:
        return values
    return {name: values[name] for name in numbers} | others


def _has(report: dict[str, Any], name: str, quantities: Sequence[str]) -> bool:
    return any(quantity in report["sources"][name]["quantities"] for quantity in quantities)


def _title(report: dict[str, Any]) -> str:
    sources, samples = len(report["sources"]), report["samples"]
    read = "" if report["read"] == samples else f" · metadata of {report['read']:,} read"
    return f"{report['name']} · {samples:,} samples · {sources} sources{read}"


def _number(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            return f"{value / (1e6 if unit == 'M' else 1e3):.3g} {unit}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _bare(axes: Axes, *kept: str) -> None:
    for side, spine in axes.spines.items():
        spine.set_visible(side in kept)
        spine.set_color("#cbd2d9")
    axes.tick_params(axis="y", length=0, colors=INK)


def new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained", facecolor="white")


def save(figure: Figure, path: Path) -> Path:
    """Write as PNG, atomically. A Figure of its own draws with Agg and needs no display."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
    return path
