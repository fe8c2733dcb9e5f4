"""Sections of the report as HTML text: results, cases, leakage, training, collection, environment.

Every value passes through `escape`, tables carry captions and scoped headers, pictures and charts carry a
text. Columns are few: a mean with its interval is one cell, the difference is a cell and a mark on a common
scale.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from .charts import Pair, arm_class, interval_mark, number, paired_dots
from .metrics import info
from .report_inputs import Comparison, Evaluation, Score, finite
from .statistics import holm
from .verdict import HEADLINES, OVERALL, case_table, headline, oriented, signed

_FOLDER = re.compile(r"(?<![\w.:/<])(?:[A-Za-z]:)?[/\\~](?:[^\s/\\'\"<>]+[/\\])+")


def section(identity: str, title: str, lead: str, body: str) -> str:
    """A titled section; nothing when it has no body."""
    if not body:
        return ""
    intro = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return (
        f'<section id="{identity}" aria-labelledby="{identity}-title">'
        f'<h2 id="{identity}-title">{escape(title)}</h2>{intro}{body}</section>'
    )


def table(caption: str, heads: Sequence[tuple[str, str]], rows: Iterable[str], *, note: str = "") -> str:
    """A table inside a box that scrolls sideways. `heads` are (HTML, CSS class); `rows` are whole `<tr>`s."""
    top = "".join(f'<th scope="col" class="{kind}">{text}</th>' for text, kind in heads)
    label = escape(re.sub(r"<[^>]+>", "", caption), quote=True)
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{label}">'
        f"<table><caption>{caption}</caption><thead><tr>{top}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>{below}"
    )


def results(evaluations: Sequence[Evaluation]) -> str:
    """One table a task: means with intervals, the paired difference on a scale, p with Holm's correction."""
    corrected = _corrected(evaluations)
    body = "".join(_task_table(e, corrected) for e in evaluations if e.arms)
    lead = (
        "Means over test cases with 95 % intervals from a bootstrap over subjects; differences are paired by "
        "case. p: Wilcoxon signed-rank over subjects (for set metrics such as AUC a bootstrap test), with "
        "Holm's correction over all comparisons on this page; intervals are not corrected."
    )
    return section("results", "Results on held-out tasks", lead, body)


def _task_table(evaluation: Evaluation, corrected: dict[int, float]) -> str:
    arms = sorted(evaluation.arms, key=arm_order)
    compared = [c for c in evaluation.comparisons if c.a == "pretrained"]
    baselines = sorted({c.b for c in compared}, key=arm_order)[:1] if compared else []
    heads = [("Structure", ""), ("Metric", "")] if _structures(evaluation) else [("Metric", "")]
    heads += [(f'<span class="arm {arm_class(a)}">{escape(a)}</span>', "") for a in arms]
    if baselines:
        other = escape(baselines[0])
        heads += [
            ("Difference", ""),
            (f"<span><b>← {other}</b><b>pretrained →</b></span>", "plot"),
            ("p", "n"),
        ]
    heads.append(("Cases", "n"))
    limits = _limits([c for c in compared if c.b in baselines])
    rows, previous = [], None
    for key in _keys(evaluation):
        structure, metric = key
        cells = []
        if _structures(evaluation):
            name = "mean" if structure in OVERALL else structure
            cells.append(f'<th scope="row">{escape(name) if structure != previous else ""}</th>')
        cells.append(f'<td class="metric">{escape(_label(metric))}</td>')
        scores = [evaluation.score(arm, metric, structure) for arm in arms]
        cells += [_mean_cell(score) for score in scores]
        if baselines:
            match = [c for c in compared if (c.b, c.metric, c.structure) == (baselines[0], metric, structure)]
            cells += _difference_cells(match[0], limits, corrected) if match else ["<td></td>" * 3]
        cells.append(f'<td class="n">{_used(scores)}</td>')
        grouped = ' class="group"' if structure != previous else ""
        rows.append(f"<tr{grouped}>{''.join(cells)}</tr>")
        previous = structure
    detail = " · ".join(
        part for part in (evaluation.kind, _protocol(evaluation), _tested(evaluation)) if part
    )
    caption = f"{escape(evaluation.task)} <span>{escape(detail)}</span>"
    notes = [_others(evaluation, baselines, corrected), _tolerance(evaluation), _unit(evaluation)]
    notes += [_policy(evaluation), _set_apart(evaluation)]
    return table(caption, heads, rows, note=" ".join(note for note in notes if note))


def cases(evaluations: Sequence[Evaluation]) -> str:
    """Paired dots of the headline metric (true-class probability for set metrics) for each task."""
    figures = []
    for evaluation in evaluations:
        line = headline(evaluation)
        if line is None:
            continue
        arms = (line.comparison.a, line.comparison.b)
        for metric in (line.metric, *HEADLINES.get(evaluation.kind, ()), "absolute_error", "probability"):
            pairs = _pairs(evaluation, arms, metric)
            if pairs:
                break
        else:
            continue
        chart = paired_dots(
            pairs,
            arms,
            label=f"{evaluation.task}, {_label(metric)} by case",
            axis=_label(metric),
            bounds=info(metric).bounds,
        )
        caption = f"<b>{escape(evaluation.task)}</b> <span>{escape(_protocol(evaluation))}</span>"
        figures.append(f"<figure><figcaption>{caption}</figcaption>{chart}</figure>")
    body = f'<div class="figures large">{"".join(figures)}</div>' if figures else ""
    lead = "Each column is one test case in both arms. A blue line: the pretrained arm has the higher value."
    return section("cases", "Case by case", lead, body)


def worst(evaluations: Sequence[Evaluation]) -> str:
    """Pictures of the worst cases, arm by arm."""
    body = ""
    for evaluation in evaluations:
        figures = "".join(_worst_figure(evaluation, row) for row in evaluation.worst)
        title = f"<h3>{escape(evaluation.task)}</h3>"
        body += f'{title}<div class="figures small">{figures}</div>' if figures else ""
    lead = "The cases with the lowest scores of each arm, not a selection."
    if any(e.kind == "segmentation" for e in evaluations):
        lead += " Outlines: green is the reference, magenta the prediction."
    return section("worst", "Where it fails", lead, body)


def _worst_figure(evaluation: Evaluation, row: dict[str, Any]) -> str:
    metric, structure = str(row.get("metric", "")), str(row.get("structure") or "")
    value = number(finite(row.get("value")), info(metric).digits)
    arm, key = str(row.get("arm", "")), str(row.get("case", ""))
    told = " ".join(part for part in (structure, _label(metric), value) if part)
    if row.get("truth") and evaluation.kind != "classification":
        told = f"{row['truth']}, predicted {row.get('prediction', '–')} ({_label(metric)} {value})"
    elif row.get("truth"):
        chance = "under 0.001" if finite(row.get("value")) < 0.001 else value
        told = f"{row['truth']}, called {row.get('prediction', '–')} ({chance} for {row['truth']})"
    alt = escape(f"{evaluation.task}, case {key}, {arm}: {told}", quote=True)
    image = f'<img src="{row["picture"]}" alt="{alt}">' if row.get("picture") else ""
    return (
        f'<figure>{image}<figcaption class="below"><b>{escape(told)}</b><br>'
        f'<span class="arm {arm_class(arm)}">{escape(arm)}</span><br>'
        f"<code>{escape(key)}</code></figcaption></figure>"
    )


def leakage(evaluations: Sequence[Evaluation]) -> str:
    """What is known about test data in pretraining, task by task."""
    rows = []
    for evaluation in evaluations:
        status = str(evaluation.leakage.get("status", "unknown"))
        word = status if status in ("clean", "leaked") else "unknown"
        told = str(evaluation.leakage.get("statement") or "The evaluation gives no reason.")
        for label, key in (("Checked", "checks"), ("Not checked", "not_checked")):
            items = [str(item) for item in evaluation.leakage.get(key) or []]
            told += f" {label}: {'; '.join(items)}." if items else ""
        rows.append(
            f'<tr><th scope="row">{_breakable(evaluation.task)}</th><td class="status {word}">{word}</td>'
            f"<td>{escape(shown(told))}</td></tr>"
        )
    body = ""
    if rows:
        heads = [("Task", ""), ("Status", ""), ("What was checked", "")]
        body = table("Leakage by task", heads, rows)
    lead = "Whether images or subjects of a test set were seen in pretraining."
    return section("leakage", "Did pretraining see the test data?", lead, body)


def shown(text: str) -> str:
    """Text without the folders of the machine it was made on: of a path, the last part stays."""
    return _FOLDER.sub("", text)


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested JSON as (name, text) rows; null and empty values are left out, paths are cut."""
    if isinstance(value, dict):
        return [row for key in sorted(value) for row in flat(value[key], f"{prefix} {key}".strip())]
    if isinstance(value, list):
        value = ", ".join(str(item) for item in value)
    if isinstance(value, float):
        value = f"{value:.6g}"
    text = shown("" if value is None else str(value))
    return [(prefix.replace("_", " "), text)] if text else []


def pairs_table(caption: str, rows: Sequence[tuple[str, str]]) -> str:
    """A two-column table of names and values."""
    if not rows:
        return ""
    body = [f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in rows]
    return table(escape(caption), [("What", ""), ("Value", "")], body)


def _breakable(name: str) -> str:
    """A name as HTML that a narrow column may break after its underscores."""
    return escape(name).replace("_", "_<wbr>")


def _corrected(evaluations: Sequence[Evaluation]) -> dict[int, float]:
    """Holm-adjusted p by identity of the comparison, over everything on the page."""
    every = [c for e in evaluations for c in e.comparisons]
    return {id(c): p for c, p in zip(every, holm([c.p for c in every]).tolist(), strict=True)}


def _difference_cells(c: Comparison, limits: dict[str, float], corrected: dict[int, float]) -> list[str]:
    metric = info(c.metric)
    low, high = oriented(c)
    value = c.difference if metric.higher_is_better else -c.difference
    span = _interval(signed(c.low, metric.digits), signed(c.high, metric.digits), c.low)
    told = f"difference {signed(c.difference, metric.digits)}, interval {number(c.low)} to {number(c.high)}"
    mark = interval_mark(value, low, high, limits[metric.unit], told)
    return [
        f'<td class="ci">{signed(c.difference, metric.digits)}{span}</td>',
        f'<td class="plot">{mark}</td>',
        f'<td class="n">{_p(corrected[id(c)])}</td>',
    ]


def _limits(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Half-width of the common scale of the marks, one for each unit."""
    limits: dict[str, float] = {}
    for c in comparisons:
        reach = max((abs(v) for v in (c.difference, c.low, c.high) if math.isfinite(v)), default=0.0)
        unit = info(c.metric).unit
        limits[unit] = max(limits.get(unit, 1e-9), reach * 1.05)
    return limits


def _mean_cell(score: Score | None) -> str:
    if score is None:
        return "<td>–</td>"
    digits = info(score.metric).digits
    span = _interval(number(score.low, digits), number(score.high, digits), score.low)
    return f'<td class="ci">{number(score.mean, digits)}{span}</td>'


def _interval(low: str, high: str, value: float) -> str:
    return f"<span>{low} to {high}</span>" if math.isfinite(value) else "<span>no interval</span>"


def _p(p: float) -> str:
    if not math.isfinite(p):
        return "–"
    return "&lt;0.001" if p < 0.001 else f"{p:.3f}"


def _used(scores: Sequence[Score | None]) -> str:
    score = next((s for s in scores if s is not None), None)
    return str(score.n) if score else "–"


def _set_apart(evaluation: Evaluation) -> str:
    """Which values of the table were left out or set by the policy, by structure."""
    first = HEADLINES.get(evaluation.kind, ("",))[0]
    known = {metric for _, metric in _keys(evaluation)}
    metric = first if first in known else next(iter(known), "")
    parts = []
    for structure in dict.fromkeys(name for name, _ in _keys(evaluation) if name not in OVERALL):
        scores = [(arm, evaluation.score(arm, metric, structure)) for arm in evaluation.arms]
        left_out = max((s.excluded for _, s in scores if s), default=0)
        replaced = [f"{s.replaced} ({arm})" for arm, s in scores if s and s.replaced]
        told = [f"{left_out} left out"] if left_out else []
        told += [f"replaced {', '.join(replaced)}"] if replaced else []
        parts += [f"{structure} {'; '.join(told)}"] if told else []
    return f"Cases under that rule: {' | '.join(parts)}." if parts else ""


def _keys(evaluation: Evaluation) -> list[tuple[str, str]]:
    """(structure, metric) rows in the order of the evaluation, the mean over structures first."""
    seen = dict.fromkeys((s.structure, s.metric) for rows in evaluation.arms.values() for s in rows)
    structures = list(dict.fromkeys(structure for structure, _ in seen))
    structures.sort(key=lambda name: name not in OVERALL)
    return [key for name in structures for key in seen if key[0] == name]


def _structures(evaluation: Evaluation) -> bool:
    return any(s.structure not in OVERALL for rows in evaluation.arms.values() for s in rows)


def _label(metric: str) -> str:
    if metric == "probability":
        return "probability of the truth"
    known = info(metric)
    return f"{known.label}, {known.unit}" if known.unit else known.label


def _protocol(evaluation: Evaluation) -> str:
    known = {"full": "full fine-tuning", "linear": "linear, encoder frozen"}
    return known.get(evaluation.protocol, evaluation.protocol)


def _tested(evaluation: Evaluation) -> str:
    found = {(row.get("case"), row.get("subject")) for row in evaluation.cases}
    if not found:
        return ""
    patients = len({subject for _, subject in found})
    return f"{len(found)} test cases of {patients} subject{'s' if patients != 1 else ''}"


def _others(evaluation: Evaluation, shown_arms: Sequence[str], corrected: dict[int, float]) -> str:
    """Comparisons with further baselines in one sentence: the table has room for one."""
    first = HEADLINES.get(evaluation.kind, ("",))[0]
    rest = [c for c in evaluation.comparisons if c.a == "pretrained" and c.b not in shown_arms]
    rest = [c for c in rest if c.metric == first and (c.structure in OVERALL or not _overall(rest, first))]
    parts = []
    for c in rest:
        digits = info(c.metric).digits
        name = f" of {c.structure}" if c.structure not in OVERALL else ""
        p = corrected[id(c)]
        parts.append(
            f"{info(c.metric).label}{name} {signed(c.difference, digits)} against {c.b}, 95 % CI "
            f"{signed(c.low, digits)} to {signed(c.high, digits)}, p {'<0.001' if p < 0.001 else number(p)}"
        )
    return f"Pretrained against further baselines: {'; '.join(parts)}." if parts else ""


def _overall(comparisons: Sequence[Comparison], metric: str) -> bool:
    return any(c.metric == metric and c.structure in OVERALL for c in comparisons)


def _tolerance(evaluation: Evaluation) -> str:
    tolerance = evaluation.summary.get("nsd_tolerance_mm")
    if tolerance is None or not any(key[1] == "nsd" for key in _keys(evaluation)):
        return ""
    checked = "" if evaluation.summary.get("nsd_tolerance_verified") else ", not verified against its source"
    return f"NSD tolerance {tolerance} mm{checked}."


def _unit(evaluation: Evaluation) -> str:
    """In what errors of a predicted number are measured, and that some rows have no better side."""
    unit = evaluation.summary.get("unit")
    return f"Errors are in {unit}; a calibration slope of 1 is right." if unit else ""


def _policy(evaluation: Evaluation) -> str:
    policy = evaluation.summary.get("empty_policy")
    if isinstance(policy, dict):
        policy = policy.get("statement") or "; ".join(f"{k}: {v}" for k, v in policy.items())
    return str(policy or "") if evaluation.kind == "segmentation" else ""


def arm_order(arm: str) -> tuple[int, str]:
    """Sorting key: the pretrained arm first, then its baselines."""
    known = ("pretrained", "scratch", "random")
    return (known.index(arm) if arm in known else len(known), arm)


def _pairs(evaluation: Evaluation, arms: tuple[str, str], metric: str) -> list[Pair]:
    """Per-case values of two arms, averaged over structures."""
    (first, keys), (second, others) = (case_table(evaluation, arm, metric) for arm in arms)
    if not keys or keys != others:
        return []
    rows = []
    for (case, _), a, b in zip(keys, first, second, strict=True):
        known = [(x, y) for x, y in zip(a, b, strict=True) if math.isfinite(x + y)]
        if known:
            rows.append(
                Pair(case, sum(x for x, _ in known) / len(known), sum(y for _, y in known) / len(known))
            )
    return rows
