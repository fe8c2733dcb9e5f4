"""Patient-level splits: declared by the source or drawn by subject, always written to `split.csv`.

The choice: a subject, never an image, is what is drawn, class by class (grade, rarest finding or fifth of a
number: targets.py), so that a small class is present everywhere. A draw works on the *rank* of a subject in
its source's own sorted names, which the shards do not hold but the scan does: the same record gives the same
split on every machine, although subject keys carry a machine's own salt.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.atomic import write_text
from ..data.errors import CollectionError, ConfigError
from .record import SplitRule

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Item:
    """What a split needs to know of a case: salted keys, the declared split, the stratum (-1: none)."""

    key: str
    subject: str
    declared: str | None
    label: int = -1


def make_split(
    items: Sequence[Item], rule: SplitRule, rank: Mapping[str, int] | None = None
) -> dict[str, str]:
    """Case key -> "train" | "val" | "test", the same for all cases of a subject.

    Args:
        items: every case of the task.
        rule: declared or by_subject; a declared split without validation gets one from its training subjects,
            of size fractions[1] / (fractions[0] + fractions[1]).
        rank: subject -> position in the sorted names of the source; None: the order of the keys.

    Raises:
        CollectionError: a subject in two declared splits; a case without a split; a split that stays empty.
    """
    if rule.rule == "declared":
        chosen = _declared(items)
        if "val" not in chosen.values():
            train = [item for item in items if chosen[item.subject] == "train"]
            share = rule.fractions[1] / (rule.fractions[0] + rule.fractions[1])
            groups = _groups(train, rank, rule.seed)
            taken = _take(groups, {"val": share}, rest="train")
            chosen.update(taken)
    else:
        _, val, test = rule.fractions
        chosen = _take(_groups(items, rank, rule.seed), {"test": test, "val": val}, rest="train")
    present = Counter(chosen.values())
    for split in SPLITS:
        if not present[split]:
            raise CollectionError(
                f"split: no subject in {split} ({len(chosen)} subjects, rule {rule.rule}): "
                f"{_mend(rule, split)}"
            )
    return {item.key: chosen[item.subject] for item in items}


def take_fraction(
    items: Sequence[Item], fraction: float, draw: int, rank: Mapping[str, int] | None = None
) -> list[Item]:
    """The cases of a share of the subjects, at least one a class; a smaller share is a subset of a larger.

    Args:
        draw: number of the draw; the same one gives the same subjects to every encoder, protocol and seed.
        rank: as in `make_split`.

    Raises:
        ConfigError: `fraction` is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction: {fraction}: a share of the training subjects in (0, 1]")
    if fraction == 1:
        return list(items)
    groups = _groups(items, rank, draw)
    sizes = {name: max(1, math.ceil(fraction * len(found) - 1e-9)) for name, found in groups.items()}
    return _first(items, groups, sizes)


def take_shots(
    items: Sequence[Item], shots: int, draw: int, rank: Mapping[str, int] | None = None
) -> list[Item]:
    """The cases of `shots` subjects a class, or of all that it has; in all, where there are no classes.

    Fewer shots are a subset of more, and of the fractions of the same draw that hold as many.

    Raises:
        ConfigError: `shots` is below 1.
    """
    if shots < 1:
        raise ConfigError(f"shots: {shots}: give at least 1 subject a class")
    groups = _groups(items, rank, draw)
    return _first(items, groups, dict.fromkeys(groups, shots))


def _first(
    items: Sequence[Item], groups: Mapping[int, Sequence[str]], sizes: Mapping[int, int]
) -> list[Item]:
    kept = {subject for name, subjects in groups.items() for subject in subjects[: sizes[name]]}
    return [item for item in items if item.subject in kept]


def take_fold(
    items: Sequence[Item],
    split: Mapping[str, str],
    fold: int,
    folds: int,
    seed: int,
    rank: Mapping[str, int] | None = None,
) -> dict[str, str]:
    """A split whose train and val are dealt out anew: part `fold` of `folds` validates; test stays.

    Subjects are dealt class by class, so that every fold has its share of each; together the folds validate
    every subject once.

    Raises:
        ConfigError: `fold` is not below `folds`.
        CollectionError: fewer subjects than folds.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise ConfigError(f"fold {fold} of folds {folds}: give folds of at least 2 and fold below it, from 0")
    groups = _groups([item for item in items if split[item.key] != "test"], rank, seed)
    dealt = [subject for _, subjects in sorted(groups.items()) for subject in subjects]
    if len(dealt) < folds:
        raise CollectionError(
            f"fold: {len(dealt)} subjects beside test cannot make {folds} folds: lower folds"
        )
    validates = set(dealt[fold::folds])
    parts = {item.key: "val" if item.subject in validates else "train" for item in items}
    return {key: "test" if split[key] == "test" else part for key, part in parts.items()}


def check_classes(
    items: Sequence[Item],
    split: Mapping[str, str],
    classes: Sequence[str],
    parts: Sequence[str] = ("train", "test"),
) -> None:
    """Refuse a classification split in which a class has no case in one of `parts`.

    Raises:
        CollectionError: names the class, the split and the mend.
    """
    for part in parts:
        present = {item.label for item in items if split.get(item.key) == part}
        for index, name in enumerate(classes):
            if index not in present:
                raise CollectionError(
                    f"class {name!r} has no case in {part}: take it out of `classes`, or change the split "
                    "(rule: by_subject draws class by class)"
                )


def write_split(path: Path, items: Sequence[Item], split: Mapping[str, str], used: set[str]) -> None:
    """Write `split.csv`: key, subject (both salted), split, used (0: left out by the label fraction)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "subject", "split", "used"])
    for item in sorted(items, key=lambda item: item.key):
        part = split[item.key]
        writer.writerow([item.key, item.subject, part, int(part != "train" or item.key in used)])
    write_text(path, text.getvalue())


def read_split(path: Path) -> dict[str, str]:
    """Case key -> split from `split.csv`; training cases that the label fraction left out are "unused"."""
    with Path(path).open(newline="") as file:
        return {row["key"]: row["split"] if row["used"] == "1" else "unused" for row in csv.DictReader(file)}


def _declared(items: Sequence[Item]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for item in items:
        if item.declared not in SPLITS:
            raise CollectionError(
                f"{item.key}: the source declares no split for it (found {item.declared!r}): "
                "name the column in the record's source options, or set split.rule to by_subject"
            )
        before = chosen.setdefault(item.subject, item.declared)
        if before != item.declared:
            raise CollectionError(
                f"subject {item.subject} is in {before} and in {item.declared} (case {item.key}): "
                "correct the source's split column, or set split.rule to by_subject"
            )
    return chosen


def _groups(items: Sequence[Item], rank: Mapping[str, int] | None, seed: int) -> dict[int, list[str]]:
    """Class -> its subjects in a drawn order. A subject with several classes counts under its rarest."""
    size = Counter(item.label for item in items)
    label: dict[str, int] = {}
    for item in items:
        held = label.get(item.subject)
        if held is None or (size[item.label], item.label) < (size[held], held):
            label[item.subject] = item.label
    groups: dict[int, list[str]] = defaultdict(list)
    order = (lambda subject: (rank[subject], subject)) if rank else (lambda subject: (0, subject))
    for subject in sorted(label, key=order):
        groups[label[subject]].append(subject)
    drawn: dict[int, list[str]] = {}
    for name in sorted(groups):
        permutation = np.random.default_rng([seed, name + 1]).permutation(len(groups[name]))
        drawn[name] = [groups[name][index] for index in permutation]
    return drawn


def _take(groups: Mapping[int, Sequence[str]], shares: Mapping[str, float], rest: str) -> dict[str, str]:
    """Give each split its share of every group (rounded, at least one where three are there)."""
    chosen: dict[str, str] = {}
    for subjects in groups.values():
        start = 0
        for split, share in shares.items():
            count = round(share * len(subjects))
            if len(subjects) > len(shares):
                count = max(1, count)
            for subject in subjects[start : start + count]:
                chosen[subject] = split
            start += count
        for subject in subjects[start:]:
            chosen[subject] = rest
    return chosen


def _mend(rule: SplitRule, split: str) -> str:
    if rule.rule == "declared":
        return f"let the source declare {split} cases, or set split.rule to by_subject"
    return "raise its fraction in split.fractions, or add subjects"
