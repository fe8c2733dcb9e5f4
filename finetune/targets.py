"""What is to be predicted of an image, read from its labels: a class, findings, a grade, a number.

A target is a tuple of numbers. `strata` sorts the cases into groups that a drawn split keeps present in
every part: classes and grades as they are, findings by the rarest that an image has, numbers by fifths.

Findings come in two forms. One label that lists what applies ("effusion|mass"): the others are absent, and
all of them where the list is empty or says "No Finding", as in NIH ChestX-ray14. Or one label for each
finding, 1 or 0, as in CheXpert's table: an empty cell or -1 (uncertain) is not known, and that finding of
that image is neither learnt nor scored.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..data.errors import CollectionError, nearest
from .record import TaskRecord
from .splits import check_classes

logger = logging.getLogger(__name__)

UNKNOWN = -1.0
_TRUTH = {"1": 1.0, "true": 1.0, "yes": 1.0, "0": 0.0, "false": 0.0, "no": 0.0, "-1": UNKNOWN}
_NOTHING = {"no finding", "no findings", "none", "normal"}  # as one of the words; unless it is a class
_FIFTHS = 5


def read_target(record: TaskRecord, labels: Mapping[str, Any], *, listed: bool = False) -> tuple[float, ...]:
    """Target of an image; classes count from 0 in the record's order, findings are 1, 0 or -1 (not known).

    Args:
        listed: the source lists findings under `record.label`, so that an image without has none.

    Raises:
        CollectionError: the label is missing or is not one that the record declares.
    """
    if record.kind == "multilabel":
        return _findings(record, labels, listed)
    word = labels.get(record.label)
    if word is None:
        found = f"; it has {', '.join(sorted(map(str, labels)))}" if labels else ""
        raise CollectionError(f"has no label {record.label!r}{found}")
    if record.kind == "regression":
        return (_number(word, record.label),)
    # 2.0 of a table's column of numbers is grade "2"
    text = str(int(word)) if isinstance(word, float) and word.is_integer() else str(word)
    if text not in record.classes:
        raise CollectionError(f"label {text!r} is not among the classes{nearest(text, record.classes)}")
    return (float(record.classes.index(text)),)


def words_of(record: TaskRecord, metas: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Every word of the record's label with its number of cases, sorted: what `classes` could be."""
    found: Counter[str] = Counter()
    for meta in metas:
        said = (meta.get("labels") or {}).get(record.label)
        found.update(str(word) for word in (said if isinstance(said, list) else [said]) if word is not None)
    return sorted(found.items())


def strata(record: TaskRecord, targets: Sequence[tuple[float, ...]]) -> list[int]:
    """Group of each target, for splits; -1 where there is nothing to group by."""
    if record.kind == "multilabel":
        count = Counter(k for target in targets for k, value in enumerate(target) if value == 1)
        return [
            min((k for k, v in enumerate(target) if v == 1), key=lambda k: (count[k], k), default=len(target))
            for target in targets
        ]
    if record.kind == "regression":
        values = np.array([target[0] for target in targets])
        edges = np.quantile(values, np.arange(1, _FIFTHS) / _FIFTHS) if len(values) else values
        return [int(place) for place in np.searchsorted(edges, values, side="right")]
    return [int(target[0]) if target else -1 for target in targets]


def check_split(
    record: TaskRecord, cases: Sequence[Any], items: Sequence[Any], split: Mapping[str, str]
) -> None:
    """Refuse a split from which the task cannot be learnt or scored; warn of what it cannot say.

    Args:
        cases: with `key` and `target`.
        items: what the split was drawn from (`splits.Item`).
        split: case key -> part.

    Raises:
        CollectionError: a class without a case in train or test, one value alone to regress on.
    """
    parts = {part: [case.target for case in cases if split[case.key] == part] for part in ("train", "test")}
    if record.kind == "classification":
        check_classes(items, split, record.classes)
    elif record.kind == "ordinal":
        check_classes(items, split, record.classes, parts=("train",))
        missing = sorted(set(range(len(record.classes))) - {int(target[0]) for target in parts["test"]})
        if missing:
            names = ", ".join(record.classes[grade] for grade in missing)
            logger.warning("%s: no test case of grade %s: it does not count in AUC", record.name, names)
    elif record.kind == "multilabel":
        for part, targets in parts.items():
            for value, word in ((1.0, "with"), (0.0, "without")):
                lacking = [
                    name for k, name in enumerate(record.classes) if all(t[k] != value for t in targets)
                ]
                if lacking:
                    logger.warning("%s: %s has no case %s %s", record.name, part, word, ", ".join(lacking))
    elif record.kind == "regression" and len(set(parts["train"])) < 2:
        raise CollectionError(f"task {record.name}: every training case has the same {record.label!r}")
    elif record.kind == "retrieval" and not set(parts["train"]) & set(parts["test"]):
        raise CollectionError(
            f"task {record.name}: no class of a test case has a training case to be found: change the split"
        )


def _findings(record: TaskRecord, labels: Mapping[str, Any], listed: bool) -> tuple[float, ...]:
    said = labels.get(record.label, [] if listed else None)
    if said is None:
        target = tuple(_stated(labels.get(name), name) for name in record.classes)
        if all(value == UNKNOWN for value in target):
            raise CollectionError(f"has neither a label {record.label!r} nor one of the findings")
        return target
    present = {str(one) for one in said} if isinstance(said, list) else {str(said)}
    strange = sorted(word for word in present - set(record.classes) if word.lower() not in _NOTHING)
    if strange:
        raise CollectionError(
            f"finding {strange[0]!r} is not among the classes{nearest(strange[0], record.classes)}"
        )
    return tuple(float(name in present) for name in record.classes)


def _stated(value: Any, name: str) -> float:
    if value is None:
        return UNKNOWN
    text = str(int(value)) if isinstance(value, bool | float) and float(value).is_integer() else str(value)
    if text.lower() not in _TRUTH:
        raise CollectionError(f"finding {name!r} is {value!r}: expected 1, 0, or -1 for not known")
    return _TRUTH[text.lower()]


def _number(value: Any, label: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise CollectionError(f"label {label!r} is {value!r}: expected a number")
    return number
