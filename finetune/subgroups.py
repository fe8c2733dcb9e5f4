"""Scores of the people and machines that a mean hides: by sex, age, scanner and site, where they are known.

What is known is read from the labels of a case and, for DICOM, from its facts. Beside sex, age, scanner and
site, a record may name further labels (`subgroups: [localisation]`). Each group is compared with all other
cases of known group, on the same draws of patients. Nothing is tested: with ten groups one interval in two
tasks excludes zero by chance, and no correction makes a group of six patients speak.

Groups of fewer than five patients are counted and not scored.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..data.annotations.quasi import is_age
from .data import Case
from .metrics import info
from .scoring import CaseTable
from .statistics import Interval, interval_of, mean_draws, metric_draws, structure_mean
from .tasks import Task

logger = logging.getLogger(__name__)

FEWEST = 5  # patients of a group that is scored
MOST = 12  # groups of a variable that is shown
BANDS = ((18, "under 18"), (40, "18 to 39"), (60, "40 to 59"), (80, "60 to 79"), (1000, "80 and over"))
_DRAWS = 2000
_NAMES = {
    "sex": ("sex", "gender", "patientsex", "patientgender"),
    "scanner": ("scanner", "scannermodel", "manufacturer", "vendor", "device", "camera"),
    "site": ("site", "center", "centre", "hospital", "institution", "clinic", "source", "cohort"),
}
_SEXES = {"m": "male", "male": "male", "man": "male", "f": "female", "female": "female", "woman": "female"}
_SEXES |= {"o": "other", "other": "other"}
_UNKNOWN = {"", "unknown", "unk", "nan", "none", "na", "n/a", "not known", "not stated"}


def attributes(case: Case, more: Sequence[str] = ()) -> dict[str, str]:
    """Variable -> group of a case, of the variables that are known of it.

    Args:
        more: further labels that are variables of their own.
    """
    labels: Mapping[str, Any] = case.meta.get("labels") or {}
    found: dict[str, str] = {}
    for name, value in labels.items():
        word = re.sub(r"[^a-z]", "", name.lower())
        if is_age(name):
            found.setdefault("age", _band(value))
        for variable, names in _NAMES.items():
            if word in names:
                found.setdefault(variable, _text(value))
    found["sex"] = _SEXES.get(found.get("sex", "").lower(), found.get("sex", ""))
    facts = case.meta.get("facts") or {}
    machine = [str(facts[key]) for key in ("Manufacturer", "ManufacturerModelName") if facts.get(key)]
    found.setdefault("scanner", " ".join(machine))
    found |= {name: _text(labels.get(name)) for name in more}
    return {variable: group for variable, group in found.items() if group.lower() not in _UNKNOWN}


def subgroup_scores(task: Task, table: CaseTable, split: str) -> list[dict[str, Any]]:
    """Rows {variable, group, n, subjects, arm, metric, mean, low, high, difference, difference_low,
    difference_high}; one row without arm and scores for a group of too few patients.

    `difference` is the group minus the other cases whose group is known; a segmentation is averaged over its
    structures. Empty where no variable has two groups.
    """
    cases = task.cases[split]
    known = [attributes(case, task.record.subgroups) for case in cases]
    rows: list[dict[str, Any]] = []
    for variable in sorted({name for groups in known for name in groups}, key=_order):
        group_of = np.array([groups.get(variable, "") for groups in known])
        names = [name for name in _sorted(variable, group_of) if name]
        if len(names) > MOST:
            logger.warning("subgroups: %s has %d groups; at most %d are told", variable, len(names), MOST)
            continue
        if len(names) > 1:
            for name in names:
                rows += _group(task, table, cases, variable, name, group_of)
    return rows


def _group(
    task: Task, table: CaseTable, cases: Sequence[Case], variable: str, name: str, group_of: np.ndarray
) -> list[dict[str, Any]]:
    inside, known = group_of == name, group_of != ""
    rest = known & ~inside
    subjects = [case.subject for case in cases]
    people = {subject for subject, member in zip(subjects, inside, strict=True) if member}
    others = {subject for subject, member in zip(subjects, rest, strict=True) if member}
    head = {"variable": variable, "group": name, "n": int(inside.sum()), "subjects": len(people)}
    if len(people) < FEWEST:
        return [head]
    rows = []
    for arm in dict.fromkeys(row["arm"] for row in table.rows):
        for metric in task.record.metrics:
            if not info(metric).compared:
                continue
            score = _scorer(task, table, arm, metric, cases, subjects)
            if score is None:
                continue
            value, draws = score(inside)
            own = interval_of(value, draws)
            gap = Interval(np.nan, np.nan, np.nan)
            if len(others) >= FEWEST:
                other, drawn = score(rest)
                gap = interval_of(value - other, draws - drawn)
            rows.append(head | {
                "arm": arm, "metric": metric, "mean": own.mean, "low": own.low, "high": own.high,
                "difference": gap.mean, "difference_low": gap.low, "difference_high": gap.high,
            })  # fmt: skip
    return rows


def _scorer(
    task: Task, table: CaseTable, arm: str, metric: str, cases: Sequence[Case], subjects: Sequence[str]
) -> Callable[[np.ndarray], tuple[float, np.ndarray]] | None:
    """From members bool [N] to a metric among them and its draws; None where the arm has no such metric."""
    if metric in task.set_metrics:
        if arm not in table.predicted:
            return None
        truth, predicted, of_set = task.truth(cases), table.predicted[arm], task.set_metrics[metric]

        def of_members(members: np.ndarray) -> tuple[float, np.ndarray]:
            def within(truth: Any, score: Any, weights: np.ndarray) -> np.ndarray:
                with np.errstate(invalid="ignore", divide="ignore"):  # draws without a member
                    return np.asarray(of_set(truth, score, weights * members))

            whole = float(within(truth, predicted, np.ones((1, len(members))))[0])
            return whole, metric_draws(within, truth, predicted, subjects, _DRAWS)

        return of_members
    columns = [table.values(arm, metric, structure)[0] for structure in task.structures or [""]]
    if any(len(column) != len(cases) for column in columns):
        return None
    values = np.stack(columns, axis=1)

    def of_values(members: np.ndarray) -> tuple[float, np.ndarray]:
        chosen = np.where(members[:, None], values, np.nan)
        return structure_mean(chosen), mean_draws(chosen, subjects, _DRAWS)

    return of_values


def _band(value: Any) -> str:
    text = re.fullmatch(r"\s*0*(\d+(?:\.\d+)?)\s*[yY]?\s*", str(value))
    if isinstance(value, bool) or not text:
        return ""
    return next((name for above, name in BANDS if float(text[1]) < above), "")


def _text(value: Any) -> str:
    if value is None or isinstance(value, list | dict):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _order(variable: str) -> tuple[int, str]:
    known = ("sex", "age", "scanner", "site")
    return (known.index(variable) if variable in known else len(known), variable)


def _sorted(variable: str, groups: np.ndarray) -> list[str]:
    """Age bands in their order, other groups by size."""
    if variable == "age":
        present = set(groups.tolist())
        return [name for _, name in BANDS if name in present]
    size = Counter(groups.tolist())
    return sorted(size, key=lambda name: (-size[name], name))
