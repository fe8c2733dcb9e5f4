"""The report's section on robustness: losses by corruption, curves over severity, the contact sheet.

Everything is read from the files of study.py. Curves and tables show one metric, the first of the task's;
robustness.json and robustness.csv hold the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..charts import Series, arm_class, line_chart, number
from ..metrics import MetricInfo, info
from ..report_inputs import Evaluation, finite
from ..report_sections import section, table


def robustness(evaluations: Sequence[Evaluation]) -> str:
    """The section; nothing where no evaluation measured it."""
    body = "".join(_task(e, e.robustness) for e in evaluations if e.robustness)
    lead = (
        "What is lost when images go wrong: the score on clean images minus that on the same images "
        "corrupted; positive is worse. 95 % intervals are from a paired bootstrap over subjects. Means are "
        "over severities, then over corruptions. Real shift, between sites and scanners, stands under the "
        "subgroups."
    )
    return section("robustness", "Robustness to corrupted images", lead, body)


def _task(evaluation: Evaluation, found: Mapping[str, Any]) -> str:
    metrics = found.get("metrics") or []
    if not metrics or not found.get("scores"):
        return ""
    metric, arms = str(metrics[0]), [str(arm) for arm in found.get("arms") or []]
    title = f"<h3>{escape(evaluation.task)}</h3>"
    curves = _curves(evaluation, found, metric, arms)
    sheet = _sheet(found)
    return title + _losses(found, metric, arms) + curves + sheet


def _losses(found: Mapping[str, Any], metric: str, arms: Sequence[str]) -> str:
    """Rows: all corruptions, then each; columns: the arms' losses."""
    known = info(metric)
    heads = [("Corruption", "")]
    heads += [(f'<span class="arm {arm_class(arm)}">{escape(arm)}</span>', "") for arm in arms]
    heads.append(("Cases", "n"))
    rows = [_row("all", None, [_of(found["overall"], arm, metric) for arm in arms], known)]
    for one in found["corruptions"]:
        mine = [_of(found["by_corruption"], arm, metric, corruption=one["name"]) for arm in arms]
        rows.append(_row(str(one["title"]), int(one["cases"]), mine, known))
    severities = ", ".join(str(s) for s in found.get("severities") or [])
    unit = f", {known.unit}" if known.unit else ""
    caption = f"Loss of {escape(known.label + unit)} <span>mean of severities {escape(severities)}</span>"
    return table(caption, heads, rows, note=_spared(found, metric, known))


def _row(name: str, cases: int | None, losses: Sequence[Mapping[str, Any]], known: MetricInfo) -> str:
    cells = "".join(f'<td class="ci">{_loss(loss, known)}</td>' for loss in losses)
    count = "" if cases is None else str(cases)
    return f'<tr><th scope="row">{escape(name)}</th>{cells}<td class="n">{count}</td></tr>'


def _loss(row: Mapping[str, Any], known: MetricInfo) -> str:
    value, low, high = (finite(row.get(key)) for key in ("loss", "loss_low", "loss_high"))
    share = finite(row.get("relative"))
    told = f" ({_number(100 * share, 1)} %)" if math.isfinite(share) else ""
    span = (
        f"{_number(low, known.digits)} to {_number(high, known.digits)}"
        if math.isfinite(low)
        else "no interval"
    )
    return f"{_number(value, known.digits)}{told}<span>{span}</span>"


def _spared(found: Mapping[str, Any], metric: str, known: MetricInfo) -> str:
    """How much less the pretrained arm loses, in a sentence for each baseline."""
    parts = []
    for row in found.get("comparisons") or []:
        if row.get("metric") != metric:
            continue
        low, high = finite(row.get("low")), finite(row.get("high"))
        more = "less" if finite(row.get("spared")) >= 0 else "more"
        sure = " (the interval includes zero)" if low <= 0 <= high else ""
        gap = _number(abs(finite(row.get("spared"))), known.digits)
        parts.append(
            f"pretrained loses {gap} {more} than {row.get('b')}, "
            f"95 % CI of the difference {_number(low, known.digits)} to {_number(high, known.digits)}{sure}"
        )
    return (
        f"In brackets, the share of the clean score. Over all corruptions {'; '.join(parts)}."
        if parts
        else ""
    )


def _curves(evaluation: Evaluation, found: Mapping[str, Any], metric: str, arms: Sequence[str]) -> str:
    """One chart a corruption: score over severity, an arm a line, clean at 0."""
    known, figures = info(metric), []
    every = [
        finite(row[key]) for row in found["scores"] if row["metric"] == metric for key in ("clean", "score")
    ]
    reached = [value for value in every if math.isfinite(value)]
    span = (min(reached), max(reached)) if reached else None
    for one in found["corruptions"]:
        series = []
        for arm in arms:
            mine = sorted(
                (
                    r
                    for r in found["scores"]
                    if (r["arm"], r["metric"], r["corruption"]) == (arm, metric, one["name"])
                ),
                key=lambda row: row["severity"],
            )
            if mine:
                x = [0.0, *(float(row["severity"]) for row in mine)]
                y = [finite(mine[0]["clean"]), *(finite(row["score"]) for row in mine)]
                series.append(Series(arm, x, y, arm_class(arm)))
        label = f"{evaluation.task}, {known.label} under {one['title']}"
        chart = line_chart(series, label=label, x_label="severity", digits=known.digits, span=span)
        if chart:
            caption = f"<b>{escape(str(one['title']))}</b> <span>{escape(known.label)}</span>"
            figures.append(f"<figure><figcaption>{caption}</figcaption>{chart}</figure>")
    return f'<div class="figures">{"".join(figures)}</div>' if figures else ""


def _sheet(found: Mapping[str, Any]) -> str:
    uri = found.get("picture")
    if not uri:
        return ""
    names = ", ".join(str(one["title"]).lower() for one in found["corruptions"])
    alt = escape(f"One test image under {names}, mild to severe", quote=True)
    image = f'<img src="{uri}" alt="{alt}">'
    return (
        "<details><summary>What the corruptions look like</summary>"
        f'<div class="panels"><figure>{image}</figure></div></details>'
    )


def _of(rows: Sequence[Mapping[str, Any]], arm: str, metric: str, **more: str) -> Mapping[str, Any]:
    wanted = {"arm": arm, "metric": metric, **more}
    return next((row for row in rows if all(row.get(k) == v for k, v in wanted.items())), {})


def _number(value: float, digits: int) -> str:
    """A loss for reading: what rounds to zero is zero."""
    return number(round(value, digits) + 0.0 if math.isfinite(value) else value, digits)
