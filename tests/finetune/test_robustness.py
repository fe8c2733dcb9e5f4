"""finetune/robustness/study.py, losses.py: every loss is of the long table, and a killed study goes on."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medloom.data.errors import ConfigError
from medloom.finetune.evaluation import evaluate
from medloom.finetune.robustness import scored
from medloom.finetune.robustness import study as module
from medloom.finetune.robustness.losses import Pair, losses
from medloom.finetune.robustness.study import study
from medloom.finetune.statistics import paired_difference
from medloom.scripts import cli
from sklearn.metrics import roc_auc_score

NAMES = ("motion", "blur")


@pytest.fixture(scope="module")
def segmented(segmentation_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluation folder of the segmentation with a study of two corruptions."""
    folder = evaluate(segmentation_run, out=tmp_path_factory.mktemp("segmented"))
    study(segmentation_run, folder, corruptions=NAMES, severities=(1, 5))
    return folder


@pytest.fixture(scope="module")
def classified(classification_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluation folder of the classification, studied through the command line."""
    folder = tmp_path_factory.mktemp("classified")
    argv = ["evaluate", str(classification_run), "--out", str(folder), "--robustness", "--severities", "3"]
    assert cli.main(argv) == 0
    return folder


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "robustness" / "robustness.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "robustness" / "robustness.json").read_text())


def test_losses_of_a_segmentation_are_those_of_the_long_table(segmented: Path) -> None:
    rows, found = table(segmented), result(segmented)
    # arms, cases, structures, metrics: clean and four conditions
    assert len(rows) == 2 * 3 * 2 * 3 * 5
    values = {
        (r["arm"], r["corruption"], r["severity"], r["metric"], r["structure"], r["case"]): float(r["value"])
        for r in rows
    }
    cases = sorted({r["case"] for r in rows})
    subjects = [next(r["subject"] for r in rows if r["case"] == case) for case in cases]
    assert len(found["scores"]) == 2 * 4 * 3
    for row in found["scores"]:
        clean, worse = (
            np.array([[values[row["arm"], *where, row["metric"], s, case] for s in ("outer", "inner")]
                      for case in cases])
            for where in (("clean", "0"), (row["corruption"], str(row["severity"])))
        )  # fmt: skip
        sides = (clean, worse) if row["metric"] != "hd95" else (worse, clean)
        expected = paired_difference(*sides, subjects)
        assert row["loss"] == pytest.approx(expected.difference, abs=1e-4)
        assert row["clean"] == pytest.approx(clean.mean(), rel=1e-5)
        assert row["relative"] == pytest.approx(expected.difference / clean.mean(), rel=1e-3, abs=1e-4)
        assert row["loss_low"] - 1e-6 <= row["loss"] <= row["loss_high"] + 1e-6
    for row in found["by_corruption"]:
        mine = [s["loss"] for s in found["scores"]
                if all(s[k] == row[k] for k in ("arm", "metric", "corruption"))]  # fmt: skip
        assert row["loss"] == pytest.approx(np.mean(mine), abs=1e-5)
    overall = {(r["arm"], r["metric"]): r["loss"] for r in found["overall"]}
    for row in found["comparisons"]:
        spared = overall["scratch", row["metric"]] - overall["pretrained", row["metric"]]
        assert row["spared"] == pytest.approx(spared, abs=1e-5)
    assert found["leakage"]["statement"]


def test_losses_of_a_classification_are_of_the_whole_set(classified: Path) -> None:
    rows, found = table(classified), result(classified)
    assert {r["corruption"] for r in rows} == {"clean", *(c["name"] for c in found["corruptions"])}
    assert {"quantum_noise", "jpeg", "exposure"} <= {c["name"] for c in found["corruptions"]}
    for arm in ("pretrained", "random", "scratch"):
        mine = [r for r in rows if (r["arm"], r["corruption"], r["metric"]) == (arm, "blur", "correct")]
        accuracy = np.mean([float(r["value"]) for r in mine])
        (row,) = (r for r in found["scores"]
                  if (r["arm"], r["metric"], r["corruption"]) == (arm, "accuracy", "blur"))  # fmt: skip
        assert row["score"] == pytest.approx(accuracy, abs=1e-6)
        assert row["loss"] == pytest.approx(row["clean"] - accuracy, abs=1e-6)
    # With two classes the probability of the true class gives the AUC back.
    with (classified / "predictions.csv").open(newline="") as file:
        truth = {r["case"]: r["truth"] == "bright" for r in csv.DictReader(file)}
    mine = [
        r for r in rows if (r["arm"], r["corruption"], r["metric"]) == ("random", "shadow", "probability")
    ]
    assert not mine  # an acoustic shadow does not befall X-rays
    mine = [r for r in rows if (r["arm"], r["corruption"], r["metric"]) == ("random", "jpeg", "probability")]
    bright = [float(r["value"]) if truth[r["case"]] else 1 - float(r["value"]) for r in mine]
    (row,) = (r for r in found["scores"]
              if (r["arm"], r["metric"], r["corruption"]) == ("random", "auc", "jpeg"))  # fmt: skip
    assert row["score"] == pytest.approx(roc_auc_score([truth[r["case"]] for r in mine], bright), abs=1e-6)


def test_the_report_and_the_sheet_show_it(segmented: Path, classified: Path) -> None:
    for folder, title in ((segmented, "Motion"), (classified, "Quantum noise")):
        page = (folder / "report.html").read_text()
        assert "Robustness to corrupted images" in page and title in page
        assert page.count("data:image/png") + page.count("data:image/webp") > 1
        assert (folder / "robustness" / "sheet.png").stat().st_size > 5_000
    for folder in (segmented, classified):
        for path in (folder / "robustness").rglob("*"):
            assert not path.is_file() or b"patient-" not in path.read_bytes()


def test_a_killed_study_continues_and_gives_the_same(
    segmentation_run: Path, segmented: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = evaluate(segmentation_run, out=tmp_path / "evaluation")
    calls: list[str] = []
    real = module.score_condition

    def dying(task: Any, networks: Any, cases: Any, condition: Any, *rest: Any) -> Any:
        if condition.name == "blur" and len(calls) < 4:
            raise KeyboardInterrupt
        calls.append(condition.label)
        return real(task, networks, cases, condition, *rest)

    monkeypatch.setattr(module, "score_condition", dying)
    with pytest.raises(KeyboardInterrupt):
        study(segmentation_run, folder, corruptions=NAMES, severities=(1, 5))
    assert calls == ["clean-0", "motion-1", "motion-5"]
    assert not (folder / "robustness" / "robustness.json").exists()
    calls.append("again")
    study(segmentation_run, folder, corruptions=NAMES, severities=(1, 5))
    assert calls[4:] == ["clean-0", "blur-1", "blur-5"]
    for name in ("robustness.csv", "robustness.json"):
        assert (folder / "robustness" / name).read_bytes() == (segmented / "robustness" / name).read_bytes()
    study(segmentation_run, folder, corruptions=("motion",), severities=(5,))
    assert calls[7:] == []  # a part of what is there
    assert {row["severity"] for row in table(folder)} == {"0", "5"}


def test_other_weights_are_scored_again(
    segmentation_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = evaluate(segmentation_run, out=tmp_path / "evaluation")
    out = study(segmentation_run, folder, corruptions=("gamma",), severities=(2,))
    part = out / "conditions" / "gamma-2.npz"
    before = part.stat().st_mtime_ns
    study(segmentation_run, folder, corruptions=("gamma",), severities=(2,))
    assert part.stat().st_mtime_ns == before
    monkeypatch.setattr(module, "VERSION", 99)
    study(segmentation_run, folder, corruptions=("gamma",), severities=(2,))
    assert part.stat().st_mtime_ns > before


def test_a_corrupted_image_is_described_as_ingest_would(task_of: Any, volumes: Path) -> None:
    task = task_of(volumes)
    cases = task.cases["test"]
    held = scored.Corrupted()
    found = held.hold(task, cases, "bias_field", 5)
    for case, changed in zip(cases, found, strict=True):
        image = held(changed, task.data.image(case))
        assert not np.array_equal(image, task.data.image(case))
        assert changed.key == case.key
        assert changed.meta["stats"]["max"] == [float(image.max())]
        assert changed.meta["stats"]["mean"] != case.meta["stats"]["mean"]
    task.corrupt = held
    assert np.array_equal(
        task.image(found[0], [2, 3, 4], [4, 5, 6]), held(found[0], image)[:, 2:6, 3:8, 4:10]
    )


def test_what_cannot_be_studied_is_refused(segmentation_run: Path, segmented: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run `medloom evaluate`"):
        study(segmentation_run, tmp_path)
    with pytest.raises(ConfigError, match="not on val"):
        study(segmentation_run, segmented, split="val")
    with pytest.raises(ConfigError, match="did you mean motion"):
        study(segmentation_run, segmented, corruptions=["moton"])
    with pytest.raises(ConfigError, match="stain needs colour images"):
        study(segmentation_run, segmented, corruptions=["stain"])
    with pytest.raises(ConfigError, match="from 1"):
        study(segmentation_run, segmented, severities=[0])


def test_losses_turn_errors_around_and_divide_by_the_clean_score() -> None:
    rng = np.random.default_rng(0)
    clean = np.concatenate([[4.0], 4 + rng.normal(0, 0.1, 500)])
    pairs = {
        ("blur", severity): {
            ("pretrained", "hd95"): Pair(clean, clean + 2 * severity - 1),
            ("scratch", "hd95"): Pair(clean, clean + 2 * severity),
        }
        for severity in (1, 2)
    }
    found = losses(pairs, ["pretrained", "scratch"], ["hd95"])
    (mine,) = (row for row in found["overall"] if row["arm"] == "pretrained")
    assert mine["loss"] == pytest.approx(2)
    assert mine["relative"] == pytest.approx(0.5)
    assert mine["loss_high"] - mine["loss_low"] < 1e-9  # paired: the spread of the scores cancels
    (gap,) = found["comparisons"]
    assert gap["spared"] == pytest.approx(1)
    nothing = Pair(np.zeros(5), np.zeros(5))
    (row,) = losses({("blur", 1): {("pretrained", "dice"): nothing}}, ["pretrained"], ["dice"])["overall"]
    assert row["loss"] == 0 and math.isnan(row["relative"])
