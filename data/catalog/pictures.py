"""Draw the counts of the catalogue as PNG: bars by facet, years, and a map of modality by organ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..inspect.statistics_pictures import FILL, INK, LISTED, SOFT, bars, cut, new_figure, save
from .statistics import UNKNOWN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODALITIES, ORGANS = 18, 24  # of the map, most frequent ones


def draw(report: dict[str, Any], out: Path) -> list[Path]:
    """Write the pictures of a report of `statistics` into the folder `out`; returns their paths."""
    figures = {"modalities": _facets(report, ("modality", "organ")),
               "facets": _facets(report, ("category", "task", "access", "commercial use", "facts")),
               "years": _years(report), "modality-by-organ": _map(report)}  # fmt: skip
    return [save(figure, out / f"catalog-{name}.png") for name, figure in figures.items()]


def _facets(report: dict[str, Any], names: tuple[str, ...]) -> Figure:
    """One panel of bars a facet, two columns."""
    columns = [names[::2], names[1::2]]
    heights = [sum(min(LISTED, len(report["by"][name])) + 3 for name in column) for column in columns]
    figure = new_figure(12, 0.7 + 0.22 * max(heights))
    parts: Any = figure.subfigures(1, 2, wspace=0.02)
    for part, column, height in zip(parts, columns, heights, strict=True):
        ratios = [min(LISTED, len(report["by"][name])) + 3 for name in column]
        rest = [max(heights) - height] if height < max(heights) else []  # so that all bars are as thick
        axes = part.subplots(len(ratios) + len(rest), 1, height_ratios=ratios + rest, squeeze=False)[:, 0]
        for one, name in zip(axes, column, strict=False):
            bars(one, f"datasets by {name}", cut(report["by"][name]))
        for one in axes[len(ratios) :]:
            one.axis("off")
    figure.suptitle(_title(report), x=0.01, ha="left", fontsize=11, color=INK)
    return figure


def _years(report: dict[str, Any]) -> Figure:
    """Datasets by year of release, years without any included."""
    counts = {int(year): count for year, count in report["by"]["year"].items() if year != UNKNOWN}
    figure = new_figure(9, 3.2)
    axes = figure.subplots()
    years = list(range(min(counts, default=0), max(counts, default=0) + 1))
    axes.bar(years, [counts.get(year, 0) for year in years], color=FILL, width=0.8)
    for year, count in counts.items():
        axes.annotate(str(count), (year, count), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.yaxis.set_visible(False)
    axes.tick_params(axis="x", labelsize=8, colors=SOFT)
    missing = report["by"]["year"].get(UNKNOWN, 0)
    axes.set_title(
        f"{_title(report)} by year of release; unknown for {missing:,}", loc="left", fontsize=10, color=INK
    )
    return figure


def _map(report: dict[str, Any]) -> Figure:
    """Datasets by modality (rows) and organ (columns), most frequent first."""
    import numpy as np

    by, crossed = report["by"], report["modality x organ"]
    rows = [name for name in by["modality"] if name != UNKNOWN][:MODALITIES]
    columns = [name for name in by["organ"] if name != UNKNOWN][:ORGANS]
    counts = np.array([[crossed.get(row, {}).get(column, 0) for column in columns] for row in rows])
    figure = new_figure(2.2 + 0.42 * len(columns), 1.6 + 0.3 * len(rows))
    axes = figure.subplots()
    axes.imshow(np.log1p(counts), cmap="Blues", aspect="auto", vmax=np.log1p(counts.max() * 3))
    for (row, column), count in np.ndenumerate(counts):
        if count:
            axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=INK)
    axes.set_xticks(range(len(columns)), columns, rotation=50, ha="left", fontsize=8)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.tick_params(length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel(f"{_title(report)}: modality by organ", fontsize=9, color=INK, loc="left")
    return figure


def _title(report: dict[str, Any]) -> str:
    return f"{report['datasets']:,} datasets of the catalogue"
