"""Sections of the leaderboard as HTML text: boards, curves, tasks, leakage, worst cases, costs, failures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from statistics import median
from typing import Any

from ..charts import number
from ..charts_curves import label_curve
from ..charts_ranking import critical_difference_diagram, rank_stability_chart
from ..critical_difference import critical_difference, task_scores
from ..metrics import info
from ..ranking import rank_stability
from ..report_inputs import finite
from ..report_sections import flat, pairs_table, section, shown, table
from ..statistics import Interval
from .charts import Row, interval_rows
from .config import BenchmarkConfig, encoder_name, task_name
from .results import Entry, Results, difference, from_scratch, tasks_of
from .standing import Standing

_WORST = 2  # pictures of an encoder and task


def boards(standings: Sequence[Standing], results: Results) -> str:
    """One table a protocol and share of the labels, best rank first, with the ranks drawn beside."""
    body = "".join(_board(standing, results) for standing in standings)
    lead = (
        "Means over test cases and runs with 95 % intervals from draws of patients and runs (seeds, "
        "labels). Colour: the interval of the paired difference from scratch lies above (▲) or below (▼) "
        "zero. Ranks: one-sided Wilcoxon tests over patients in every task, structure and metric, as in "
        "the Decathlon; for metrics of a whole set, such as AUC, on what judges single cases, such as the "
        "probability of the true class. Behind each score stands what is known of leakage."
    )
    return section("results", "Leaderboard", lead, body)


def _board(standing: Standing, results: Results) -> str:
    ranks = {rank.method: rank for rank in standing.ranks}
    rows = []
    for encoder in standing.encoders:
        rank = ranks.get(encoder)
        told = "–"
        if rank:
            span = f"{number(rank.low, 1)} to {number(rank.high, 1)}"
            told = f"{number(rank.rank, 2)}<span>{span}</span>"
        cells = [f'<th scope="row">{_encoder(encoder, _arm(standing, encoder))}</th>',
                 f'<td class="score">{told}</td>']  # fmt: skip
        cells += [_score(standing, task, encoder, results) for task in standing.tasks]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    heads = [("Encoder", ""), ("Mean rank", "")]
    for task in standing.tasks:
        metric = next(entry.metric for (name, _), entry in standing.entries.items() if name == task)
        heads.append((f"{escape(task)}<br>{escape(_label(metric))}", ""))
    caption = f"{escape(standing.protocol)} <span>{escape(standing.detail)}</span>"
    return table(caption, heads, rows) + _ranks(standing)


def _ranks(standing: Standing) -> str:
    """The critical-difference diagram over tasks, and how firm the ranks are over patients."""
    if len(standing.ranks) < 2:
        return ""
    found = critical_difference(*task_scores(standing.cells))
    label = f"{standing.protocol}, {standing.detail}"
    diagram = critical_difference_diagram(found, label=f"critical differences, {label}")
    stability = rank_stability(standing.cells)
    firm = rank_stability_chart(stability.shares, label=f"ranks in draws of patients, {label}")
    friedman = f", Friedman p {number(found.friedman_p)}" if math.isfinite(found.friedman_p) else ""
    told = (
        (
            "Critical difference",
            f"mean rank over {found.tasks} task{'s' if found.tasks > 1 else ''}; a bar joins what Nemenyi's "
            f"test does not tell apart{friedman}",
            diagram,
        ),
        (
            "Firmness",
            f"share of draws of patients at each rank; Kendall's tau {number(stability.tau, 2)}",
            firm,
        ),
    )
    figures = "".join(
        f"<figure><figcaption><b>{name}</b> <span>{escape(text)}</span></figcaption>{chart}</figure>"
        for name, text, chart in told
    )
    return f'<div class="charts">{figures}</div>'


def _score(standing: Standing, task: str, encoder: str, results: Results) -> str:
    entry = standing.entries.get((task, encoder))
    if entry is None:
        reasons = {
            failure.kind for failure in results.failures
            if (failure.cell.encoder, failure.cell.protocol) == (encoder, standing.protocol)
            and failure.cell.name.startswith(f"{task}/")
        }  # fmt: skip
        return f'<td class="none">{", ".join(sorted(reasons)) or "–"}</td>'
    digits = info(entry.metric).digits
    mark, style = "", "leaked" if entry.leakage == "leaked" else ""
    scratch = from_scratch(entry, standing.entries.values())
    if scratch is not None and not style:
        gap = difference(entry, scratch)
        style = "better" if gap.low > 0 else "worse" if gap.high < 0 else ""
        mark = {"better": " ▲", "worse": " ▼"}.get(style, "")
    span = "no interval"
    if math.isfinite(entry.low):
        span = f"{number(entry.low, digits)} to {number(entry.high, digits)}"
    return (
        f'<td class="score"><b class="{style}">{number(entry.mean, digits)}{mark}</b>'
        f"<span>{span} · {entry.leakage}</span></td>"
    )


def curves(results: Results) -> str:
    """Score against the number of labelled subjects, where there are several shares."""
    every = list(results.entries.values())
    if len({entry.fraction for entry in every}) < 2:
        return ""
    figures = []
    for task, protocol in dict.fromkeys((e.task, e.protocol) for e in every if e.arm != "scratch"):
        rows = [e for e in every if e.task == task and (e.protocol == protocol or e.arm == "scratch")]
        lines: dict[str, list[tuple[float, str, Interval]]] = {}
        for entry in sorted(rows, key=lambda entry: entry.fraction):
            value = Interval(entry.mean, entry.low, entry.high)
            place = (entry.subjects, f"{100 * entry.fraction:g} %", value)
            lines.setdefault(entry.encoder, []).append(place)
        known, axis = info(rows[0].metric), _label(rows[0].metric)
        chart = label_curve(lines, label=f"{task}, {protocol}", axis=axis, digits=known.digits)
        caption = f"<b>{escape(task)}</b> <span>{escape(protocol)}, {escape(axis)}</span>"
        figures.append(f"<figure><figcaption>{caption}</figcaption>{chart}</figure>")
    lead = "The same nested subsets of the training subjects for all encoders."
    return section("labels", "Fewer labels", lead, f'<div class="figures large">{"".join(figures)}</div>')


def tasks(results: Results) -> str:
    """One chart a task: all encoders and protocols with their intervals, at the largest share of labels."""
    figures = []
    for task in tasks_of(results.entries.values()):
        own = [entry for entry in results.entries.values() if entry.task == task]
        most = max(entry.fraction for entry in own)
        own = [entry for entry in own if entry.fraction == most]
        better = info(own[0].metric).higher_is_better
        own.sort(key=lambda entry: entry.mean, reverse=better)
        rows = [
            Row(f"{entry.encoder} · {entry.protocol}", entry.mean, entry.low, entry.high, *_style(entry.arm))
            for entry in own
        ]
        label = f"{task}, {_label(own[0].metric)}"
        detail = f"{_label(own[0].metric)}, {100 * most:g} % of the labels"
        caption = f"<b>{escape(task)}</b> <span>{escape(detail)}</span>"
        known = info(own[0].metric)
        chart = interval_rows(rows, label=label, digits=known.digits, bounds=known.bounds)
        figures.append(f"<figure><figcaption>{caption}</figcaption>{chart}</figure>")
    body = f'<div class="charts">{"".join(figures)}</div>' if figures else ""
    return section("tasks", "Task by task", "Discs are encoders, squares baselines.", body)


def leakage(results: Results) -> str:
    """What is known of each encoder on each task."""
    seen: dict[tuple[str, str], Entry] = {}
    for entry in results.entries.values():
        seen.setdefault((entry.encoder, entry.task), entry)
    rows = [
        f'<tr><th scope="row">{escape(encoder)}</th><td>{escape(task)}</td><td class="status '
        f'{entry.leakage}">{entry.leakage}</td><td>{escape(shown(entry.statement))}</td></tr>'
        for (encoder, task), entry in seen.items()
    ]
    heads = [("Encoder", ""), ("Task", ""), ("Status", ""), ("What was found", "")]
    body = table("Leakage by encoder and task", heads, rows) if rows else ""
    lead = "Whether images or subjects of a test set were seen in pretraining. No score stands without it."
    return section("leakage", "Did pretraining see the test data?", lead, body)


def worst(results: Results, standings: Sequence[Standing]) -> str:
    """The worst cases of the best encoder of each task and of the network from scratch, with overlays."""
    body = ""
    best = standings[0].encoders if standings else []
    for task in tasks_of(results.entries.values()):
        own = [entry for entry in results.entries.values() if entry.task == task]
        first = sorted((e for e in own if e.arm == "pretrained"), key=lambda e: _place(best, e.encoder))[:1]
        chosen = [*first, *[entry for entry in own if entry.arm == "scratch"][:1]]
        figures = "".join(_figure(entry, row) for entry in chosen for row in _pictures(entry)[:_WORST])
        if figures:
            body += f'<h3>{escape(task)}</h3><div class="figures small">{figures}</div>'
    lead = (
        "The cases with the lowest scores, of the encoder that stands first and of the network from scratch; "
        "first seed. Outlines: green is the reference, magenta the prediction."
    )
    return section("worst", "Where they fail", lead, body)


def _pictures(entry: Entry) -> list[dict[str, Any]]:
    rows = entry.results[0].evaluation.worst
    return [row for row in rows if row.get("arm") == entry.arm and row.get("picture")]


def _figure(entry: Entry, row: dict[str, Any]) -> str:
    key, metric = str(row.get("case", "")), str(row.get("metric", ""))
    told = f"{_label(metric)} {number(finite(row.get('value')), info(metric).digits)}"
    if row.get("truth"):
        told = f"{row['truth']}, called {row.get('prediction', '–')}"
    alt = escape(f"{entry.task}, case {key}, {entry.encoder}: {told}", quote=True)
    return (
        f'<figure><img src="{row["picture"]}" alt="{alt}"><figcaption class="below"><b>{escape(told)}</b><br>'
        f"{_encoder(entry.encoder, entry.arm)}, {escape(entry.protocol)}<br><code>{escape(key)}</code>"
        "</figcaption></figure>"
    )


def costs(results: Results) -> str:
    """Seconds and memory of a cell, medians over seeds."""
    rows = []
    for entry in results.entries.values():
        found = [result.cost for result in entry.results]
        fit = median(finite((cost.get("seconds") or {}).get("fit")) for cost in found)
        score = median(finite((cost.get("seconds") or {}).get("score")) for cost in found)
        memory = max(finite(cost.get("memory_mb")) for cost in found)
        device = max((finite(cost.get("accelerator_mb")) for cost in found), default=math.nan)
        sizes = entry.results[0].training.get("parameters") or {}
        rows.append(
            f'<tr><th scope="row">{_encoder(entry.encoder, entry.arm)}</th><td>{escape(entry.task)}</td>'
            f'<td>{escape(entry.protocol)}</td><td class="n">{100 * entry.fraction:g} %</td>'
            f'<td class="n">{number(fit, 1)}</td><td class="n">{number(score, 1)}</td>'
            f'<td class="n">{number(memory, 0)}</td><td class="n">{number(device, 0)}</td>'
            f'<td class="n">{number(finite(sum(sizes.values())) / 1e6, 1)}</td></tr>'
        )
    numbers = ("Labels", "Fit, s", "Score, s", "Memory, MB", "Accelerator, MB", "Parameters, M")
    heads = [("Encoder", ""), ("Task", ""), ("Protocol", ""), *((name, "n") for name in numbers)]
    body = table("What a cell costs", heads, rows) if rows else ""
    lead = (
        "Medians over seeds; memory is the peak of the process. The first frozen probe of an encoder and "
        "task pays for the features that the others then read."
    )
    return section("costs", "Costs", lead, body)


def failures(results: Results) -> str:
    """Cells without a score, with their reasons."""
    grouped: dict[tuple[str, str, str, str], list[str]] = {}
    for failure in results.failures:
        cell = failure.cell
        key = (task_name(cell.task), cell.encoder, failure.kind, failure.reason)
        grouped.setdefault(key, []).append(cell.name.rpartition("/")[2])
    rows = [
        f'<tr><th scope="row">{escape(encoder)}</th><td>{escape(task)}</td><td>{kind}</td>'
        f"<td>{escape(shown(reason))}</td><td>{escape(', '.join(names))}</td></tr>"
        for (task, encoder, kind, reason), names in grouped.items()
    ]
    heads = [("Encoder", ""), ("Task", ""), ("Status", ""), ("Why", ""), ("Cells", "")]
    body = table("Cells without a score", heads, rows) if rows else ""
    body += "".join(f'<p class="note">{escape(shown(line))}</p>' for line in results.missing)
    lead = "refused: the encoder does not fit the task; failed: try again with --retry."
    return section("failures", "What is missing", lead, body)


def made(config: BenchmarkConfig, results: Results) -> str:
    """What was asked, and on what it ran."""
    asked = {
        "encoders": [f"{name} ({encoder_name(source)})" for name, source in config.encoders.items()],
        "protocols": config.protocols, "seeds": config.seeds, "fractions": config.fractions,
        "draws": config.draws,
        "baselines": config.baselines or "none", "options": config.options, **config.task_options,
    }  # fmt: skip
    body = pairs_table("What was asked", flat(asked))
    devices = {str(r.cost.get("device")) for e in results.entries.values() for r in e.results}
    summaries = [entry.results[0].evaluation.summary for entry in results.entries.values()]
    machine = summaries[0].get("environment") or {} if summaries else {}
    body += pairs_table("Machine of the first cell", flat({"devices": sorted(devices), **machine}))
    return section("made", "How it was made", "", body)


def _arm(standing: Standing, encoder: str) -> str:
    return next(entry.arm for (_, name), entry in standing.entries.items() if name == encoder)


def _style(arm: str) -> tuple[str, bool]:
    if arm == "pretrained":
        return "arm-pretrained", False
    return ("arm-other" if arm == "random" else "arm-scratch"), True


def _encoder(name: str, arm: str) -> str:
    if arm == "pretrained":
        return escape(name)
    return f'<span class="baseline">{escape(name)}</span>'


def _label(metric: str) -> str:
    known = info(metric)
    return f"{known.label}, {known.unit}" if known.unit else known.label


def _place(order: Sequence[str], name: str) -> int:
    return order.index(name) if name in order else len(order)
