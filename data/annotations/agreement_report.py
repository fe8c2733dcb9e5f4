"""A survey in figures: coefficients with intervals by label, overlaps by structure, marks; plain JSON values.

Which coefficient fits is decided by the declared kind: nominal ones for single and each name of multi-label,
weighted and ordinal ones for ordinal, intraclass correlation and limits of agreement for values. A label
that is not declared counts as single.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from .agreement import Level, cohen_kappa, fleiss_kappa, interval_of, krippendorff_alpha
from .icc import icc
from .kinds import LabelKind
from .survey import Case, Survey

SEED = 0  # of the bootstrap: the same survey gives the same page
WORST = 6  # cases that are shown

OVERLAPS = ("dice", "nsd")  # 1 is best; others are distances
METRICS = ("dice", "nsd", "hd95", "assd")


def report(survey: Survey) -> dict[str, Any]:
    """All figures of a dataset. Annotators are letters, those who read most first."""
    reads: dict[str, int] = {}
    for case in survey.cases:
        for annotator in case.said:
            reads[annotator] = reads.get(annotator, 0) + 1
    order = sorted(reads, key=lambda key: (-reads[key], key))
    letters = {key: letter(number) for number, key in enumerate(order)}
    return {
        "dataset": survey.dataset,
        "images": survey.images,
        "cases": len(survey.cases),
        "checked": survey.checked,
        "annotators": [{"name": letters[key], "key": key, "cases": reads[key]} for key in order],
        "labels": _labels(survey, order, letters),
        "masks": _masks(survey.cases, letters),
        "marks": _marks(survey.cases, letters),
        "worst": _worst(survey.cases),
        "faults": [{"key": key, "reason": reason} for key, reason in survey.faults],
    }


def letter(number: int) -> str:
    """A, B, ... Z, AA, AB ..."""
    return (letter(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)


def _labels(survey: Survey, order: list[str], letters: dict[str, str]) -> list[dict[str, Any]]:
    """One entry a label, one a name of a multi-label."""
    said = [case.said for case in survey.cases]
    names = sorted({name for case in said for labels in case.values() for name in labels})
    entries = []
    for name in names:
        kind = survey.kinds.get(name, LabelKind())
        rows = [[case.get(key, {}).get(name) for key in order] for case in said]
        rows = [row for row in rows if sum(value is not None for value in row) > 1]
        if not rows:
            continue
        for title, codes, values in _coded(name, rows, kind):
            entry = _label(codes, kind.kind, [letters[key] for key in order])
            entries.append(
                {"label": title, "kind": kind.kind, "declared": name in survey.kinds, "unit": kind.unit,
                 "cases": len(rows), "values": values, **entry}
            )  # fmt: skip
    return entries


def _coded(
    name: str, rows: list[list[Any]], kind: LabelKind
) -> list[tuple[str, np.ndarray, list[Any] | None]]:
    """(title, table of codes [cases, annotators], what the codes stand for)."""
    given = [value for row in rows for value in row if value is not None]
    if kind.kind == "value":
        return [(name, np.array([[_nan(v) for v in row] for row in rows], float), None)]
    if kind.kind == "multi-label":
        found = sorted({str(one) for value in given for one in value})
        return [
            (f"{name}: {one}",
             np.array([[_nan(v, lambda v, one=one: one in map(str, v)) for v in row] for row in rows], float),
             ["no", "yes"])
            for one in found
        ]  # fmt: skip
    values = list(kind.values) or sorted(set(given), key=str)
    return [(name, np.array([[_nan(v, values.index) for v in row] for row in rows], float), values)]


def _nan(value: Any, code: Any = float) -> float:
    return math.nan if value is None else float(code(value))


def _label(codes: np.ndarray, kind: str, letters: list[str]) -> dict[str, Any]:
    """Coefficients over all annotators, and rows by pair."""
    generator = np.random.default_rng(SEED)
    level: Level = "ordinal" if kind == "ordinal" else "interval" if kind == "value" else "nominal"
    alpha = partial(krippendorff_alpha, level=level)
    coefficients = [_with_interval(f"Krippendorff's alpha, {level}", alpha, codes, generator)]
    if kind != "value":
        _, used = fleiss_kappa(codes)
        row = _with_interval("Fleiss' kappa", lambda table: fleiss_kappa(table)[0], codes, generator)
        coefficients.append(row | {"cases": used})
    else:
        full = codes[np.isfinite(codes).all(1)]
        if len(full) > 1:
            coefficients += [
                {"name": one.form, "value": _short(one.value), "low": _short(one.low),
                 "high": _short(one.high), "cases": len(full)}
                for one in icc(full)
            ]  # fmt: skip
    return {"coefficients": coefficients, "pairs": _pairs(codes, kind, letters)}


def _pairs(codes: np.ndarray, kind: str, letters: list[str]) -> list[dict[str, Any]]:
    rows = []
    for first, second in itertools.combinations(range(len(letters)), 2):
        a, b = codes[:, first], codes[:, second]
        both = ~(np.isnan(a) | np.isnan(b))
        if not both.any():
            continue
        row: dict[str, Any] = {"a": letters[first], "b": letters[second], "cases": int(both.sum())}
        if kind == "value":
            apart = (a - b)[both]
            half = 1.96 * apart.std(ddof=1) if len(apart) > 1 else math.nan
            row |= {"difference": _short(apart.mean()), "lower": _short(apart.mean() - half),
                    "upper": _short(apart.mean() + half)}  # fmt: skip
        else:
            row |= {"agreed": _short((a == b)[both].mean()), "kappa": _short(cohen_kappa(a, b))}
            if kind == "ordinal":
                row |= {f"kappa, {w}": _short(cohen_kappa(a, b, w)) for w in ("linear", "quadratic")}
        rows.append(row)
    return rows


def _with_interval(name: str, coefficient: Any, codes: np.ndarray, generator: Any) -> dict[str, Any]:
    low, high = interval_of(coefficient, codes, generator)
    value = coefficient(codes)
    return {
        "name": name,
        "value": _short(value),
        "low": _short(low),
        "high": _short(high),
        "cases": len(codes),
    }


def _masks(cases: Sequence[Case], letters: dict[str, str]) -> list[dict[str, Any]]:
    """A row a structure over all pairs, then a row a pair."""
    rows = [(case, row) for case in cases for row in case.overlaps]
    generator = np.random.default_rng(SEED)
    found = []
    for structure in sorted({row["structure"] for _, row in rows}):
        mine = [(case, row) for case, row in rows if row["structure"] == structure]
        for pair in (None, *sorted({(row["a"], row["b"]) for _, row in mine})):
            chosen = [(c, row) for c, row in mine if pair is None or (row["a"], row["b"]) == pair]
            by_case: dict[str, list[float]] = {}
            for case, row in chosen:
                by_case.setdefault(case.key, []).append(row["dice"])
            dice = np.array([[np.mean(values)] for values in by_case.values()])
            low, high = interval_of(lambda table: float(table.mean()), dice, generator)
            entry = {
                "structure": structure,
                "pair": None if pair is None else sorted(letters[key] for key in pair),
                "cases": len(by_case), "low": _short(low), "high": _short(high),
                "unit": "/".join(sorted({case.unit for case, _ in chosen})),
            }  # fmt: skip
            for metric in METRICS:
                known = [row[metric] for _, row in chosen if _known(row.get(metric))]
                # Means of shares, medians of distances: one stray voxel would carry a mean.
                if known:
                    middle = (
                        np.mean(dice)
                        if metric == "dice"
                        else (np.mean(known) if metric in OVERLAPS else np.median(known))
                    )
                    entry[metric] = _short(float(middle))
            found.append(entry)
    return found


def _marks(cases: Sequence[Case], letters: dict[str, str]) -> list[dict[str, Any]]:
    """A row a kind and label, over all pairs and images."""
    found = []
    rows = [(case.unit, row) for case in cases for row in case.marks]
    for kind, label in sorted({(row["kind"], row["label"]) for _, row in rows}):
        mine = [row for _, row in rows if (row["kind"], row["label"]) == (kind, label)]
        entry: dict[str, Any] = {"kind": kind, "label": label, "pairs": len(mine)}
        if kind == "point":
            distances = np.array([row["distance"] for row in mine])
            entry |= {"mean": _short(distances.mean()), "median": _short(float(np.median(distances))),
                      "p95": _short(float(np.percentile(distances, 95))),
                      "unit": "/".join(sorted({u for u, row in rows if row["label"] == label}))}  # fmt: skip
        else:
            boxes = sum(sum(row["boxes"]) for row in mine)
            matched = sum(row["matched"] for row in mine)
            overlap = sum(row["iou"] * row["matched"] for row in mine if row["matched"])
            entry |= {
                "f1": _short(2 * matched / boxes),
                "iou": _short(overlap / matched) if matched else None,
            }
        found.append(entry)
    return found


def _worst(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """The images whose masks, or boxes, differ most: by their least Dice, or F1."""
    ranked = []
    for case in cases:
        values = [(row["dice"], row["structure"]) for row in case.overlaps if _known(row.get("dice"))]
        values = values or [(row["f1"], row["label"]) for row in case.marks if row["kind"] == "box"]
        if values:
            value, what = min(values)
            ranked.append({"key": case.key, "what": what, "value": _short(value)})
    return sorted(ranked, key=lambda row: (row["value"], row["key"]))[:WORST]


def _known(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _short(value: float | np.floating) -> float | None:
    """Four digits; JSON has no NaN."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
