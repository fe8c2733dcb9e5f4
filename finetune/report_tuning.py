"""The report's section on a search for the training's numbers: every trial, and which numbers mattered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .charts import arm_class, number
from .report_inputs import Evaluation, finite
from .report_sections import section, table

_SHOWN = 4  # significant digits of a searched number


def tuning(evaluations: Sequence[Evaluation]) -> str:
    """The section; nothing where nothing was searched."""
    body = "".join(_task(evaluation) for evaluation in evaluations if evaluation.tuning.get("arms"))
    lead = (
        "Numbers of the training were searched on the validation split, each arm by a search of its own with "
        "the same number of trials. The best validation score is the best of many looks and flatters; the "
        "test split was scored once, after the search."
    )
    return section("tuning", "Search for the training's numbers", lead, body)


def _task(evaluation: Evaluation) -> str:
    found = evaluation.tuning
    parts = [f"<h3>{escape(evaluation.task)}</h3>"]
    for arm, search in found["arms"].items():
        parts += [_numbers(arm, search), _trials(arm, search, int(found.get("steps") or 0))]
    return "".join(parts)


def _numbers(arm: str, search: Mapping[str, Any]) -> str:
    """One row a number: where it was searched, what was found, how much it explains."""
    heads = [("Number", ""), ("Searched", ""), ("Given", "n"), ("Found", "n"), ("Importance", "n")]
    given = search["trials"][0]["params"]
    rows = []
    for key, (low, high, scale) in search["ranges"].items():
        share = search["importance"].get(key)
        cells = (
            f"{_short(low)} to {_short(high)}{', log' if scale == 'log' else ''}",
            _short(given.get(key)),
            _short(search["best"]["params"].get(key)),
            "" if share is None else f"{100 * finite(share):.0f} %",
        )
        kinds = ("", "n", "n", "n")
        inside = "".join(f'<td class="{k}">{escape(c)}</td>' for c, k in zip(cells, kinds, strict=True))
        rows.append(f'<tr><th scope="row">{escape(key)}</th>{inside}</tr>')
    name = f'<span class="arm {arm_class(arm)}">{escape(arm)}</span>'
    note = "Importance: share of the spread between the finished trials that a number explains (fANOVA)."
    return table(f"{name}: best of trial {search['best']['number']}", heads, rows, note=note)


def _trials(arm: str, search: Mapping[str, Any], steps: int) -> str:
    keys = list(search["ranges"])
    heads = [("Trial", "n"), ("State", ""), (escape(f"Validation {search['criterion']}"), "n")]
    heads += [(escape(key.rpartition(".")[2]), "n") for key in keys]
    rows = []
    for trial in search["trials"]:
        value = trial["value"] if trial["value"] is not None else trial.get("last")
        cells = [str(trial["number"]), escape(str(trial["state"])), number(finite(value), 4)]
        cells += [_short(trial["params"].get(key)) for key in keys]
        kinds = ["n", "", *["n"] * (len(keys) + 1)]
        inside = "".join(f'<td class="{k}">{c}</td>' for c, k in zip(cells, kinds, strict=True))
        rows.append(f"<tr>{inside}</tr>")
    caption = f"All trials of {escape(arm)} <span>{steps} steps each</span>"
    note = "Pruned: ended when it lay below the median of the others at the same step; its best score so far."
    return f"<details><summary>{len(rows)} trials</summary>{table(caption, heads, rows, note=note)}</details>"


def _short(value: Any) -> str:
    return "" if value is None else f"{finite(value):.{_SHOWN}g}"
