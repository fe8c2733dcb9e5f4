"""Declared kinds of labels: one form in the shards, refusals with near names, ages and dates by rule."""

from __future__ import annotations

import pytest
from medloom.data.annotations.kinds import parse_kinds, tidy_labels
from medloom.data.errors import CollectionError, ConfigError

SAID = {
    "class": {"kind": "single", "values": ["benign", "malignant"]},
    "findings": {"kind": "multi-label", "separator": "|"},
    "grade": {"kind": "ordinal", "order": [0, 1, 2, 3]},
    "density": {"kind": "ordinal", "order": ["a", "b", "c", "d"]},
    "ki67": {"kind": "value", "unit": "percent"},
    "free": "single",
}


@pytest.mark.parametrize(
    ("label", "given", "stored"),
    [
        ("class", "benign", "benign"),
        ("findings", "Effusion|Atelectasis", ["Atelectasis", "Effusion"]),
        ("findings", ["b", "a", "b"], ["a", "b"]),
        ("findings", {"a": 1, "b": 0, "c": True}, ["a", "c"]),
        ("findings", "", []),
        ("grade", "2", 2),
        ("grade", 2.0, 2),
        ("density", "c", "c"),
        ("ki67", "14", 14.0),
        ("free", "anything", "anything"),
        ("undeclared", [1, "x"], [1, "x"]),
    ],
)
def test_a_label_is_stored_in_the_form_of_its_kind(label, given, stored):
    result = tidy_labels({label: given}, parse_kinds(SAID, "kinds"))[label]
    assert result == stored and type(result) is type(stored)


def test_several_labels_follow_the_declared_order():
    kinds = parse_kinds({"f": {"kind": "multi-label", "values": ["z", "m", "a"]}}, "kinds")
    assert tidy_labels({"f": {"a", "z"}}, kinds) == {"f": ["z", "a"]}
    with pytest.raises(CollectionError, match="label f: 'q' is not among its declared values"):
        tidy_labels({"f": ["q"]}, kinds)


def test_a_label_that_is_not_known_is_left_out():
    assert tidy_labels({"class": None, "grade": 1}, parse_kinds(SAID, "kinds")) == {"grade": 1}


@pytest.mark.parametrize(
    ("label", "given", "reason"),
    [
        ("class", "malignent", "did you mean malignant"),
        ("class", ["benign", "malignant"], "declare it multi-label"),
        ("grade", 7, "7 is not among its declared values"),
        ("ki67", "high", "'high' is not a number"),
        ("ki67", float("inf"), "not a number"),
        ("ki67", True, "not a number"),
    ],
)
def test_a_value_against_the_declaration_is_refused(label, given, reason):
    with pytest.raises(CollectionError, match=reason):
        tidy_labels({label: given}, parse_kinds(SAID, "kinds"))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("ordnal", "unknown kind 'ordnal'; did you mean ordinal"),
        ("ordinal", "needs its order"),
        ({"kind": "ordinal", "order": [1, "1"]}, "listed twice"),
        ({"kind": "ordinal", "values": [1, 2]}, "unknown key 'values' of ordinal; did you mean|unknown key"),
        ({"kind": "multi-label", "values": "abc"}, "expected a list"),
        (3, "expected one of single"),
    ],
)
def test_a_wrong_declaration_is_refused_by_its_key(said, reason):
    with pytest.raises(ConfigError, match=reason) as error:
        parse_kinds({"grade": said}, "sources[0].label_kinds")
    assert str(error.value).startswith("sources[0].label_kinds.grade")


@pytest.mark.parametrize(
    ("name", "given", "stored"),
    [
        ("age", 89, 89), ("age", 90, 90), ("age", 104, 90), ("age", 89.5, 90), ("patient_age", "093Y", 90),
        ("PatientAge", "045Y", 45), ("Age (years)", "97", 90), ("age", "45", "45"), ("age", "018M", 1.5),
        ("age", "80-89", "80-89"), ("AgeAtScan", 101.2, 90), ("age", "90+", 90),
        ("gestational_age", 240, 240), ("age_months", 120, 120), ("stage", 95, 95), ("dosage", 120, 120),
        ("image", 99, 99),
    ],
)  # fmt: skip
def test_ages_above_89_become_90(name, given, stored):
    assert tidy_labels({name: given}, {})[name] == stored


def test_an_age_in_months_by_declaration_is_left_alone():
    kinds = parse_kinds({"age": {"kind": "value", "unit": "months"}}, "kinds")
    assert tidy_labels({"age": 120}, kinds) == {"age": 120.0}


@pytest.mark.parametrize(
    "text", ["2021-03-04", "20210304", 20210304, "4.3.2021", "2021/3/4", "2021-03-04T10:00:00"]
)
def test_a_date_is_refused_and_not_repeated(text):
    with pytest.raises(CollectionError, match="label visit: holds a date") as error:
        tidy_labels({"visit": text}, {})
    assert "2021" not in str(error.value)


@pytest.mark.parametrize("text", ["2021", 2021, "1.2.3", 99999999, "20219999", "3-4"])
def test_years_and_codes_are_no_dates(text):
    assert tidy_labels({"visit": text}, {}) == {"visit": text}
