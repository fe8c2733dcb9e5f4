"""Section of the report: the headline metric by sex, age, scanner, site and what else the record names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .charts import arm_class, interval_mark, number
from .metrics import info
from .report_inputs import Evaluation, finite
from .report_sections import arm_order, section, table
from .verdict import headline_metric, signed


def subgroups(evaluations: Sequence[Evaluation]) -> str:
    """A table for each task whose metadata tell groups apart."""
    body = "".join(_table(evaluation) for evaluation in evaluations)
    lead = (
        "Scores of groups of test subjects with 95 % intervals, and how far each group lies from all others "
        "(first arm). Nothing here is corrected for the number of groups, and groups differ in more than "
        "their name; a group of fewer than five subjects is counted, not scored."
    )
    return section("subgroups", "For whom does it hold?", lead, body)


def _table(evaluation: Evaluation) -> str:
    rows = [row for row in evaluation.summary.get("subgroups") or [] if isinstance(row, Mapping)]
    scored = {str(row["metric"]) for row in rows if row.get("metric")}
    metric = headline_metric(evaluation.kind, scored) or next(iter(sorted(scored)), None)
    if metric is None:
        return ""
    arms = sorted({str(row["arm"]) for row in rows if row.get("arm")}, key=arm_order)
    first = arms[0]
    told = info(metric)
    heads = [("", ""), ("Group", "")]
    heads += [(f'<span class="arm {arm_class(arm)}">{escape(arm)}</span>', "") for arm in arms]
    heads += [("To the others", ""), ("<span><b>← worse</b><b>better →</b></span>", "plot")]
    heads += [("Subjects", "n"), ("Cases", "n")]
    limit = _limit(rows, metric, first)
    lines, previous = [], None
    groups = dict.fromkeys((str(row["variable"]), str(row["group"])) for row in rows)
    for variable, group in groups:
        own = [row for row in rows if (row["variable"], row["group"]) == (variable, group)]
        by_arm = {str(row["arm"]): row for row in own if row.get("metric") == metric}
        name = escape(variable) if variable != previous else ""
        cells = [f'<th scope="row">{name}</th>', f"<td>{escape(group)}</td>"]
        cells += [_mean(by_arm.get(arm), told.digits) for arm in arms]
        cells += _difference(by_arm.get(first), metric, limit)
        cells += [f'<td class="n">{int(own[0]["subjects"])}</td>', f'<td class="n">{int(own[0]["n"])}</td>']
        grouped = ' class="group"' if variable != previous else ""
        lines.append(f"<tr{grouped}>{''.join(cells)}</tr>")
        previous = variable
    caption = f"{escape(evaluation.task)} <span>{escape(told.label)} by group</span>"
    return table(caption, heads, lines)


def _limit(rows: Sequence[Mapping[str, Any]], metric: str, arm: str) -> float:
    """Half-width of the common scale of the marks."""
    keys = ("difference", "difference_low", "difference_high")
    reach = [
        abs(finite(row.get(key)))
        for row in rows
        for key in keys
        if row.get("metric") == metric and row.get("arm") == arm
    ]
    return max([value for value in reach if math.isfinite(value)], default=1e-9) * 1.05 or 1e-9


def _mean(row: Mapping[str, Any] | None, digits: int) -> str:
    if row is None:
        return '<td class="ci">–</td>'
    low, high = finite(row.get("low")), finite(row.get("high"))
    span = f"{number(low, digits)} to {number(high, digits)}" if math.isfinite(low) else "no interval"
    return f'<td class="ci">{number(finite(row.get("mean")), digits)}<span>{span}</span></td>'


def _difference(row: Mapping[str, Any] | None, metric: str, limit: float) -> list[str]:
    value, low, high = (
        finite(row.get(key)) if row else math.nan
        for key in ("difference", "difference_low", "difference_high")
    )
    if not math.isfinite(value):
        return ['<td class="ci">–</td>', '<td class="plot"></td>']
    known = info(metric)
    sign = 1 if known.higher_is_better else -1
    turned = (low, high) if sign > 0 else (-high, -low)
    told = f"difference {signed(value, known.digits)}, interval {number(low)} to {number(high)}"
    return [
        f'<td class="ci">{signed(value, known.digits)}</td>',
        f'<td class="plot">{interval_mark(sign * value, *turned, limit, told)}</td>',
    ]
