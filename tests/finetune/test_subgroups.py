"""Groups are read from labels and facts, scored as the whole is, and small ones are counted only."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from medloom.finetune.calibration import calibration
from medloom.finetune.data import Case
from medloom.finetune.metrics import CLASSIFICATION
from medloom.finetune.report_calibration import calibration as calibration_section
from medloom.finetune.report_inputs import Evaluation
from medloom.finetune.report_subgroups import subgroups as subgroup_section
from medloom.finetune.scoring import CaseTable
from medloom.finetune.subgroups import attributes, subgroup_scores
from sklearn.metrics import roc_auc_score


def case(number: int, subject: str, labels: dict[str, Any], facts: dict[str, Any] | None = None) -> Case:
    meta = {"key": f"k{number}", "subject": subject, "labels": labels, "facts": facts or {}}
    return Case(None, meta, int(labels.get("class", 0)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "facts", "expected"),
    [
        ({"sex": "F", "age": 63}, {}, {"sex": "female", "age": "60 to 79"}),
        ({"PatientSex": "m", "patient_age": "017Y"}, {}, {"sex": "male", "age": "under 18"}),
        ({"gender": "male", "age": 90.0}, {}, {"sex": "male", "age": "80 and over"}),
        ({"sex": "unknown", "age": None, "age_months": 7}, {}, {}),
        ({"site": 3.0, "findings": ["a"]}, {}, {"site": "3"}),
        ({}, {"Manufacturer": "Siemens", "ManufacturerModelName": "Skyra"}, {"scanner": "Siemens Skyra"}),
        ({"Scanner": "A"}, {"Manufacturer": "Siemens"}, {"scanner": "A"}),
        ({"localization": "neck", "sex": "f"}, {}, {"sex": "female", "localization": "neck"}),
    ],
)
def test_what_is_known_of_a_case(
    labels: dict[str, Any], facts: dict[str, Any], expected: dict[str, str]
) -> None:
    assert attributes(case(0, "s", labels, facts), ["localization"]) == expected


def classification(seed: int = 0, subjects: int = 60) -> tuple[Any, CaseTable]:
    """Two images a subject, women scored well and men badly by `pretrained`; three of one site."""
    rng = np.random.default_rng(seed)
    cases = []
    for number in range(2 * subjects):
        subject = number // 2
        labels = {
            "class": subject % 2,
            "sex": "F" if subject % 3 else "M",
            "site": "x" if subject < 3 else "y",
        }
        cases.append(case(number, f"s{subject:02d}", labels))
    truth = np.array([c.label for c in cases])
    women = np.array([c.meta["labels"]["sex"] == "F" for c in cases])
    good = np.clip(
        0.5 + np.where(women, 0.12, 0.01) * (2 * truth - 1) + rng.normal(0, 0.12, len(cases)), 0.01, 0.99
    )
    table = CaseTable()
    for arm, p in (("pretrained", good), ("scratch", rng.random(len(cases)))):
        table.predicted[arm] = np.stack([1 - p, p], axis=1)
        table.rows += [{"arm": arm, "metric": "correct", "structure": "", "value": float((v > 0.5) == t),
                        "status": "ok", "subject": c.subject, "case": c.key}
                       for c, v, t in zip(cases, p, truth, strict=True)]  # fmt: skip
    task = SimpleNamespace(
        cases={"test": cases}, structures=[], set_metrics=CLASSIFICATION,
        record=SimpleNamespace(metrics=["auc", "accuracy"], subgroups=[]),
        truth=lambda cases: np.array([c.label for c in cases]),
    )  # fmt: skip
    return task, table


def test_a_group_is_scored_as_if_it_were_the_whole_set() -> None:
    task, table = classification()
    rows = subgroup_scores(task, table, "test")
    assert {row["variable"] for row in rows} == {"sex", "site"}
    truth = task.truth(task.cases["test"])
    score = table.predicted["pretrained"][:, 1]
    for group, letter in (("female", "F"), ("male", "M")):
        inside = np.array([c.meta["labels"]["sex"] == letter for c in task.cases["test"]])
        row = next(
            r for r in rows if (r["group"], r.get("arm"), r.get("metric")) == (group, "pretrained", "auc")
        )
        assert row["mean"] == pytest.approx(roc_auc_score(truth[inside], score[inside]))
        other = roc_auc_score(truth[~inside], score[~inside])
        assert row["difference"] == pytest.approx(row["mean"] - other)
        assert row["low"] < row["mean"] < row["high"]
        assert (row["n"], row["subjects"]) == (inside.sum(), inside.sum() // 2)
    women = next(
        r for r in rows if (r["group"], r.get("arm"), r.get("metric")) == ("female", "pretrained", "auc")
    )
    assert women["difference_low"] > 0
    men = next(
        r for r in rows if (r["group"], r.get("arm"), r.get("metric")) == ("male", "pretrained", "auc")
    )
    assert (men["difference_low"], men["difference_high"]) == pytest.approx(
        (-women["difference_high"], -women["difference_low"])
    )


def test_too_few_patients_are_counted_and_not_scored() -> None:
    task, table = classification()
    rows = [row for row in subgroup_scores(task, table, "test") if row["variable"] == "site"]
    small = [row for row in rows if row["group"] == "x"]
    assert small == [{"variable": "site", "group": "x", "n": 6, "subjects": 3}]
    large = next(row for row in rows if row["group"] == "y")
    assert np.isfinite(large["mean"]) and np.isnan(large["difference"])


def test_values_of_cases_are_averaged_after_structures() -> None:
    cases = [case(n, f"s{n}", {"site": "ab"[n % 2]}) for n in range(12)]
    table = CaseTable()
    for structure, base in (("organ", 0.5), ("lesion", 0.1)):
        for n, c in enumerate(cases):
            missing = structure == "lesion" and n > 3
            table.rows.append({
                "arm": "pretrained", "metric": "dice", "structure": structure, "subject": c.subject,
                "value": float("nan") if missing else base + 0.2 * (n % 2),
                "status": "excluded" if missing else "ok",
            })  # fmt: skip
    task: Any = SimpleNamespace(
        cases={"test": cases}, structures=["organ", "lesion"], set_metrics={},
        record=SimpleNamespace(metrics=["dice"], subgroups=[]),
    )  # fmt: skip
    rows = {row["group"]: row for row in subgroup_scores(task, table, "test")}
    assert rows["a"]["mean"] == pytest.approx(0.3)
    assert rows["b"]["mean"] == pytest.approx(0.5)
    assert rows["b"]["difference"] == pytest.approx(0.2)


def test_one_group_or_too_many_are_no_comparison() -> None:
    task, table = classification()
    for c in task.cases["test"]:
        c.meta["labels"] = {"sex": "F", "site": c.subject}
    assert subgroup_scores(task, table, "test") == []


def evaluation(task: Any, table: CaseTable) -> Evaluation:
    summary = {
        "calibration": calibration(task, table, "test"), "subgroups": subgroup_scores(task, table, "test")
    }  # fmt: skip
    return Evaluation("busi", "classification", "linear", summary=summary)


def test_calibration_of_the_summary_adds_up() -> None:
    task, table = classification()
    found = calibration(task, table, "test")
    truth = task.truth(task.cases["test"])
    assert set(found) == {"pretrained", "scratch"}
    for arm, values in found.items():
        bins = values["bins"]
        assert sum(row["n"] for row in bins) == len(truth)
        gap = sum(row["n"] * abs(row["right"] - row["probability"]) for row in bins) / len(truth)
        assert values["ece"]["mean"] == pytest.approx(gap)
        assert values["brier"]["mean"] == CLASSIFICATION["brier"](truth, table.predicted[arm])
        assert values["slope"]["low"] < values["slope"]["mean"] < values["slope"]["high"]
    assert found["pretrained"]["slope"]["mean"] > found["scratch"]["slope"]["mean"]
    task.set_metrics = {}
    assert calibration(task, table, "test") == {}


def test_the_sections_say_what_the_summary_says(tmp_path: Path) -> None:
    task, table = classification()
    read = evaluation(task, table)
    page = calibration_section([read]) + subgroup_section([read])
    assert page.count("<svg") >= 2 + 2
    assert "female" in page and "expected error" in page
    row = next(r for r in read.summary["subgroups"] if r.get("metric") == "auc" and r["group"] == "female")
    assert f"{row['mean']:.3f}" in page
    assert calibration_section([Evaluation("t", "segmentation", "full")]) == ""
    assert subgroup_section([Evaluation("t", "segmentation", "full")]) == ""
