"""Section of the report: how many labels it takes, with and without pretraining."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from .charts import arm_class, interval_mark, number
from .charts_curves import label_curve
from .curves import DRAWS, Curve, Point
from .metrics import info
from .report_sections import arm_order, section, table
from .verdict import signed


def label_curves(found: Sequence[Curve]) -> str:
    """A chart and a table for each curve."""
    body = "".join(_curve(curve) for curve in found)
    lead = (
        "Each size was drawn several times, by subject; a smaller subset is part of a larger one, and all "
        "arms learn from the same subsets. Intervals (95 %) are over test subjects and over draws and seeds."
    )
    return section("labels", "How many labels does it take?", lead, body)


def _curve(curve: Curve) -> str:
    metric = info(curve.metric)
    arms = sorted(curve.arms, key=arm_order)
    lines = {arm: [(p.subjects, p.size.name, p.value) for p in curve.points if p.arm == arm] for arm in arms}
    chart = label_curve(
        lines, label=f"{curve.task}, label efficiency", axis=metric.label, digits=metric.digits
    )
    detail = " · ".join(part for part in (metric.label, curve.protocol, curve.encoder) if part)
    caption = f"<b>{escape(curve.task)}</b> <span>{escape(detail)}</span>"
    figure = f'<div class="figures large"><figure><figcaption>{caption}</figcaption>{chart}</figure></div>'
    return figure + _table(curve, arms)


def _table(curve: Curve, arms: Sequence[str]) -> str:
    metric = info(curve.metric)
    baseline = next((arm for arm in arms if any(gap.arm == arm for gap in curve.gaps)), None)
    heads = [("Labels", ""), ("Subjects", "n")]
    heads += [(f'<span class="arm {arm_class(arm)}">{escape(arm)}</span>', "") for arm in arms]
    if baseline:
        heads += [
            ("Difference", ""),
            (f"<span><b>← {escape(baseline)}</b><b>pretrained →</b></span>", "plot"),
        ]
    heads.append(("Runs", "n"))
    gaps = {gap.size: gap for gap in curve.gaps if gap.arm == baseline}
    reach = [abs(v) for g in gaps.values() for v in (g.value.mean, g.value.low, g.value.high)]
    limit = max((v for v in reach if math.isfinite(v)), default=0.0) * 1.05 or 1e-9
    rows = []
    for size in dict.fromkeys(point.size for point in curve.points):
        own = {point.arm: point for point in curve.points if point.size == size}
        first = next(iter(own.values()))
        cells = [f'<th scope="row">{size.name}</th>', f'<td class="n">{number(first.subjects, 0)}</td>']
        cells += [_cell(own.get(arm), metric.digits) for arm in arms]
        if baseline:
            cells += _gap(gaps.get(size), curve.metric, limit)
        cells.append(f'<td class="n">{first.runs}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    few = [point.size.name for point in curve.points if point.runs < DRAWS and point.arm == arms[0]]
    note = (
        f"Fewer than {DRAWS} draws: {', '.join(few)}; how much the draw decides is hardly known."
        if few
        else ""
    )
    return table(f"{escape(curve.task)} <span>{escape(metric.label)} by size</span>", heads, rows, note=note)


def _cell(point: Point | None, digits: int) -> str:
    if point is None:
        return '<td class="ci">–</td>'
    low, high = point.value.low, point.value.high
    span = f"{number(low, digits)} to {number(high, digits)}" if math.isfinite(low) else "no interval"
    return f'<td class="ci">{number(point.value.mean, digits)}<span>{span}</span></td>'


def _gap(point: Point | None, metric: str, limit: float) -> list[str]:
    if point is None:
        return ["<td></td>", '<td class="plot"></td>']
    known, value = info(metric), point.value
    low, high = (value.low, value.high) if known.higher_is_better else (-value.high, -value.low)
    mean = value.mean if known.higher_is_better else -value.mean
    span = "no interval"
    if math.isfinite(low):
        span = f"{signed(value.low, known.digits)} to {signed(value.high, known.digits)}"
    told = f"difference {signed(value.mean, known.digits)}, {span}"
    return [
        f'<td class="ci">{signed(value.mean, known.digits)}<span>{span}</span></td>',
        f'<td class="plot">{interval_mark(mean, low, high, limit, told)}</td>',
    ]
