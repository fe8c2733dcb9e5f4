"""finetune/splits.py: patients, never images; the same everywhere; refusals that name the mend."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from medloom.data.errors import CollectionError, ConfigError
from medloom.finetune.record import SplitRule
from medloom.finetune.splits import (
    Item,
    check_classes,
    make_split,
    read_split,
    take_fraction,
    take_shots,
    write_split,
)

CLASSES = 3


def items(subjects: int = 30, images: int = 3) -> list[Item]:
    """Subject s has class s % 3 and `images` images; class 2 is rarer."""
    labels = [0 if s % 5 < 2 else 1 if s % 5 < 4 else 2 for s in range(subjects)]
    return [
        Item(f"k{s:03d}-{i}", f"s{s:03d}", None, labels[s]) for s in range(subjects) for i in range(images)
    ]


def test_a_subject_never_crosses_a_split_and_every_class_is_everywhere() -> None:
    cases = items()
    split = make_split(cases, SplitRule(rule="by_subject"))
    of_subject: dict[str, set[str]] = {}
    for case in cases:
        of_subject.setdefault(case.subject, set()).add(split[case.key])
    assert all(len(parts) == 1 for parts in of_subject.values())
    for part in ("train", "val", "test"):
        assert {case.label for case in cases if split[case.key] == part} == set(range(CLASSES))
    share = Counter(split.values())["test"] / len(cases)
    assert 0.1 < share < 0.3


def test_the_draw_depends_on_the_ranks_of_names_and_not_on_the_salted_keys() -> None:
    first = items()
    renamed = [Item(f"x{c.key}", f"salt{hash(c.subject)}", None, c.label) for c in first]
    rank_a = {case.subject: int(case.subject[1:]) for case in first}
    rank_b = {b.subject: rank_a[a.subject] for a, b in zip(first, renamed, strict=True)}
    rule = SplitRule(rule="by_subject", seed=3)
    a, b = make_split(first, rule, rank_a), make_split(renamed, rule, rank_b)
    assert [a[c.key] for c in first] == [b[c.key] for c in renamed]
    other = make_split(first, SplitRule(rule="by_subject", seed=4), rank_a)
    assert other != a


def test_declared_split_is_kept_and_a_missing_validation_is_taken_from_train() -> None:
    cases = [
        Item(c.key, c.subject, "test" if int(c.subject[1:]) >= 20 else "train", c.label) for c in items()
    ]
    split = make_split(cases, SplitRule())
    assert {c.key for c in cases if split[c.key] == "test"} == {c.key for c in cases if c.declared == "test"}
    taken = {c.subject for c in cases if split[c.key] == "val"}
    assert taken
    assert not taken & {c.subject for c in cases if split[c.key] == "train"}


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ([Item("a", "s", "train"), Item("b", "s", "test")], "subject s is in train and in test"),
        ([Item("a", "s", None)], "declares no split"),
        ([Item(str(n), f"s{n}", "train") for n in range(9)], "no subject in test"),
    ],
)
def test_declared_splits_that_cannot_be_used_are_refused(cases: list[Item], message: str) -> None:
    with pytest.raises(CollectionError, match=message) as caught:
        make_split(cases, SplitRule())
    assert "by_subject" in str(caught.value)


def test_too_few_subjects_are_refused() -> None:
    with pytest.raises(CollectionError, match="no subject in"):
        make_split([Item("a", "s0", None), Item("b", "s1", None)], SplitRule(rule="by_subject"))


def test_fractions_are_nested_by_subject_and_keep_every_class() -> None:
    cases = items(60)
    kept = [{c.key for c in take_fraction(cases, f, 1)} for f in (0.01, 0.1, 0.5, 1.0)]
    assert all(small <= large for small, large in pairwise(kept))
    assert len(kept[0]) == CLASSES * 3  # one subject a class, with all its images
    assert len(kept[2]) == 90
    assert kept[3] == {c.key for c in cases}
    with pytest.raises(ConfigError, match="fraction"):
        take_fraction(cases, 0.0, 1)


def test_shots_are_subjects_of_each_class_nested_and_inside_fractions() -> None:
    cases = items(60)
    kept = [{c.subject for c in take_shots(cases, k, 2)} for k in (1, 3, 5, 1000)]
    assert all(small < large for small, large in pairwise(kept))
    for subjects, k in zip(kept, (1, 3, 5), strict=False):
        label = {c.subject: c.label for c in cases}
        assert [sum(label[s] == name for s in subjects) for name in range(CLASSES)] == [k] * CLASSES
    assert kept[3] == {c.subject for c in cases}
    half = {c.subject for c in take_fraction(cases, 0.5, 2)}
    assert kept[2] < half
    with pytest.raises(ConfigError, match="at least 1"):
        take_shots(cases, 0, 2)


def test_draws_differ_and_go_by_the_rank_of_names_not_by_salted_keys() -> None:
    first = items(60)
    draws = [frozenset(c.subject for c in take_shots(first, 2, draw)) for draw in range(5)]
    assert len(set(draws)) == 5
    renamed = [Item(f"x{c.key}", f"salt{hash(c.subject)}", None, c.label) for c in first]
    ranks = [
        {c.subject: int(a.subject[1:]) for a, c in zip(first, side, strict=True)} for side in (first, renamed)
    ]
    for take in (lambda c, r: take_shots(c, 2, 1, r), lambda c, r: take_fraction(c, 0.1, 1, r)):
        a, b = (
            {side.index(c) for c in take(side, rank)}
            for side, rank in zip((first, renamed), ranks, strict=True)
        )
        assert a == b


def test_an_absent_class_is_named() -> None:
    cases = [Item("a", "s0", "train", 0), Item("b", "s1", "test", 0), Item("c", "s2", "train", 1)]
    split = {"a": "train", "b": "test", "c": "train"}
    with pytest.raises(CollectionError, match="class 'bad' has no case in test"):
        check_classes(cases, split, ["good", "bad"])


def test_split_file_round_trip(tmp_path: Path) -> None:
    cases = items(10)
    split = make_split(cases, SplitRule(rule="by_subject"))
    train = [case for case in cases if split[case.key] == "train"]
    used = {case.key for case in train[: len(train) // 2]}
    path = tmp_path / "split.csv"
    write_split(path, cases, split, used)
    assert path.read_text().startswith("key,subject,split,used\n")
    found = read_split(path)
    assert {key for key, part in found.items() if part == "train"} == used
    assert {key for key, part in found.items() if part == "unused"} == {c.key for c in train} - used
    assert {key for key, part in found.items() if part == "test"} == {
        key for key, part in split.items() if part == "test"
    }


@pytest.mark.parametrize(
    "values", [{"rule": "random"}, {"fractions": [0.5, 0.5]}, {"fractions": [0.9, 0.2, 0.1]}]
)
def test_a_wrong_rule_is_refused(values: dict) -> None:
    with pytest.raises(ConfigError, match="split"):
        SplitRule(**values)
