"""Findings, grades, numbers and retrieval, from a table to a score; what makes no sense is refused."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from medloom.data.errors import CollectionError, ConfigError
from medloom.finetune.data import prepare
from medloom.finetune.evaluation import evaluate
from medloom.finetune.run import finetune, load_arm
from medloom.finetune.splits import make_split
from medloom.finetune.targets import strata

from .conftest import Workshop, write_table

GRADES = ["none", "mild", "severe"]
KINDS: dict[str, dict[str, Any]] = {
    "multilabel": {"label": "findings", "classes": ["top", "bottom"]},
    "ordinal": {"label": "grade", "classes": GRADES},
    "regression": {"label": "size", "unit": "mm"},
    "retrieval": {"label": "grade", "classes": GRADES},
}
# Above what chance gives on the 40 test images, below what the plain signal gives.
LEARNT = {"multilabel": ("auc", 0.9), "ordinal": ("qwk", 0.7), "regression": ("r2", 0.2),
          "retrieval": ("map@10", 0.6)}  # fmt: skip


def write_findings(folder: Path, subjects: int = 100) -> None:
    """Pictures with a bright bar on top, below, both or neither; the height of the top one is a grade."""
    from PIL import Image

    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)
    rows = []
    for number in range(subjects):
        grade, below = int(rng.integers(3)), bool(rng.integers(2))
        pixels = rng.normal(80, 8, (32, 32))
        pixels[4 : 4 + 5 * grade, 4:28] += 90
        pixels[24:29, 4:28] += 90 * below
        name = f"patient-{number:02d}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
        split = ("train", "train", "val", "test", "test")[number % 5]
        rows.append({"path": name, "subject": f"patient-{number:02d}", "split": split,
                     "findings": "|".join(["top"] * (grade > 0) + ["bottom"] * below) or "none",
                     "top": str(int(grade > 0)), "bottom": "" if number % 3 == 0 else str(int(below)),
                     "grade": GRADES[grade], "size": str(5 * grade)})  # fmt: skip
    for row in rows:
        row["findings"] = row["findings"].replace("none", "")
    write_table(folder, rows)


@pytest.fixture(scope="module")
def records(workshop: Workshop) -> dict[str, Path]:
    """A record of each kind on the same pictures."""
    if not (workshop.root / "findings").exists():
        write_findings(workshop.root / "findings")
    source = {
        "dataset": "findings", "layout": "table", "root": "findings", "modality": "x-ray",
        "label_kinds": {"findings": {"kind": "multi-label", "separator": "|"}, "size": "value"},
        "options": {"labels": ["findings", "grade", "size", "top", "bottom"], "subject": "subject",
                    "split": "split"},
    }  # fmt: skip
    return {
        kind: workshop.record(f"findings-{kind}", {"kind": kind, "source": source, **more})
        for kind, more in KINDS.items()
    }


def scored(folder: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    summary = json.loads((folder / "summary.json").read_text())
    return {(arm, r["metric"], r["structure"]): r for arm, rows in summary["arms"].items() for r in rows}


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_learns_what_the_pictures_show(
    kind: str, records: dict[str, Path], workshop: Workshop, tmp_path: Path
) -> None:
    items = ["steps=100", "batch_size=16", "image_size=32", "validations=3", "arm=scratch",
             "optim.scratch_lr=3e-3", "optim.head_lr=1e-2", "optim.betas=[0.9,0.99]", "head.dropout=0",
             "augment.crop_scale=[0.95,1]", "augment.affine=0", "augment.intensity=0",
             "augment.noise=0"]  # fmt: skip
    config = workshop.config(records[kind], tmp_path / "run", *items)
    folder = evaluate(finetune(config))
    metric, bound = LEARNT[kind]
    found = scored(folder)["scratch", metric, ""]
    assert found["mean"] > bound
    assert found["low"] <= found["mean"] <= found["high"]
    assert (folder / "report.html").is_file()
    with (folder / "cases.csv").open() as file:
        cases = list(csv.DictReader(file))
    assert len({row["case"] for row in cases}) == found["n"] == 40
    assert list((folder / "overlays").glob("scratch-*.png"))


@pytest.mark.parametrize("kind", ["multilabel", "ordinal", "regression"])
def test_a_linear_model_of_frozen_features_is_what_scikit_learn_fits(
    kind: str, records: dict[str, Path], workshop: Workshop, tmp_path: Path, task_of: Callable[..., Any]
) -> None:
    from sklearn.linear_model import LogisticRegression, Ridge

    config = workshop.config(
        records[kind], tmp_path / "run", "protocol=logistic", "image_size=32", "arm=pretrained"
    )
    run = finetune(config)
    task = task_of(records[kind], "image_size=32")
    network, facts = load_arm(task, run / "pretrained")
    device = torch.device("cpu")
    x = {
        part: (task.features(network, task.cases[part], device) - network.mean.numpy()) / network.std.numpy()
        for part in ("train", "test")
    }
    truth = task.truth(task.cases["train"])
    found = np.stack(list(task.predictions(network, task.cases["test"], device)))
    if kind == "regression":
        mean, deviation = truth.mean(), truth.std()
        model = Ridge(alpha=1 / facts["C"]).fit(x["train"], (truth - mean) / deviation)
        assert found[:, 0] == pytest.approx(model.predict(x["test"]) * deviation + mean, abs=1e-2)
        return
    model = LogisticRegression(C=facts["C"], max_iter=2000)
    first = truth[:, 0] if kind == "multilabel" else (truth > 0).astype(int)
    model.fit(x["train"], first)
    chance = model.predict_proba(x["test"])[:, 1]
    assert (found[:, 0] if kind == "multilabel" else 1 - found[:, 0]) == pytest.approx(chance, abs=1e-3)
    if kind == "ordinal":
        assert found.sum(axis=1) == pytest.approx(np.ones(len(found)))
        assert (found >= 0).all()


def test_every_finding_has_a_score_of_its_own(
    records: dict[str, Path], workshop: Workshop, tmp_path: Path
) -> None:
    config = workshop.config(records["multilabel"], tmp_path / "run", "protocol=logistic", "image_size=32")
    folder = evaluate(finetune(config))
    found = scored(folder)
    parts = [found["pretrained", "auc", name]["mean"] for name in ("top", "bottom")]
    assert found["pretrained", "auc", ""]["mean"] == pytest.approx(np.mean(parts))
    summary = json.loads((folder / "summary.json").read_text())
    assert {row["structure"] for row in summary["comparisons"]} == {""}
    with (folder / "predictions.csv").open() as file:
        row = next(csv.DictReader(file))
    assert {"truth_top", "p_top", "truth_bottom", "p_bottom"} <= set(row)


def test_the_unit_of_a_number_is_in_the_report_and_its_slope_is_not_compared(
    records: dict[str, Path], workshop: Workshop, tmp_path: Path
) -> None:
    config = workshop.config(records["regression"], tmp_path / "run", "protocol=logistic", "image_size=32")
    folder = evaluate(finetune(config))
    summary = json.loads((folder / "summary.json").read_text())
    assert ("pretrained", "calibration_slope", "") in scored(folder)
    assert {row["metric"] for row in summary["comparisons"]} == {"mae", "rmse", "r2"}
    page = (folder / "report.html").read_text()
    assert "Errors are in mm" in page and "predicted" in page


def test_frozen_retrieval_orders_training_images_by_cosine(
    records: dict[str, Path], workshop: Workshop, tmp_path: Path, task_of: Callable[..., Any]
) -> None:
    config = workshop.config(records["retrieval"], tmp_path / "run", "protocol=frozen", "image_size=32")
    folder = finetune(config)
    assert (folder / "random").is_dir() and (folder / "scratch").is_dir()
    task = task_of(records["retrieval"], "image_size=32")
    network, _ = load_arm(task, folder / "pretrained")
    query = task.cases["test"][0]
    with torch.no_grad():
        described = {c.key: network(task.whole(c)[None])[0] for c in [query, *task.cases["train"]]}
    expected = [float(described[query.key] @ described[c.key]) for c in task.cases["train"]]
    ranking = next(iter(task.predictions(network, [query], torch.device("cpu"))))
    assert np.array(expected)[ranking.places] == pytest.approx(np.sort(expected)[::-1], abs=1e-5)
    same = [c.target == query.target for c in task.cases["train"]]
    assert ranking.total == sum(same)
    assert list(ranking.relevant) == [same[place] for place in ranking.places]


def test_retrieval_refuses_a_probe_that_gives_no_ranking(
    records: dict[str, Path], workshop: Workshop, tmp_path: Path
) -> None:
    config = workshop.config(records["retrieval"], tmp_path / "run", "protocol=logistic", "image_size=32")
    with pytest.raises(ConfigError, match=r"logistic.*retrieval.*frozen"):
        finetune(config)


def test_findings_in_columns_of_their_own_may_be_unknown(
    records: dict[str, Path], workshop: Workshop, task_of: Callable[..., Any]
) -> None:
    whole, parts = task_of(records["multilabel"]), task_of(records["multilabel"], "task.label=none")
    listed = {case.key: case.target for part in whole.cases.values() for case in part}
    stated = {case.key: case.target for part in parts.cases.values() for case in part}
    assert {value for target in stated.values() for value in target} == {-1.0, 0.0, 1.0}
    assert len(listed) == len(stated) == 100 and (0.0, 0.0) in listed.values()
    assert all(b in (-1.0, a) for key in stated for a, b in zip(listed[key], stated[key], strict=True))
    unknown = next(case for case in parts.cases["train"] if case.target[1] == -1)
    logits = torch.zeros(1, 2, requires_grad=True)
    parts.criterion_of(logits, torch.as_tensor(parts.target(unknown))[None]).backward()
    assert logits.grad is not None and logits.grad[0, 0] != 0 and logits.grad[0, 1] == 0


def test_classes_that_are_not_given_are_named(
    records: dict[str, Path], workshop: Workshop, tmp_path: Path
) -> None:
    config = workshop.config(records["ordinal"], tmp_path / "run", "task.classes=[]")
    with pytest.raises(CollectionError, match=r"mild \(\d+\).*task.classes=\[mild,none,severe\].*lowest"):
        prepare(config.task, root=workshop.root, cache=workshop.cache)


def test_labels_that_are_no_target_are_left_out_with_the_reason(
    records: dict[str, Path], workshop: Workshop, tmp_path: Path
) -> None:
    config = workshop.config(records["ordinal"], tmp_path / "run", "task.classes=[none,mild]")
    data = prepare(config.task, root=workshop.root, cache=workshop.cache)
    assert data.skipped
    assert all("label 'severe' is not among the classes" in row["reason"] for row in data.skipped)
    config = workshop.config(records["regression"], tmp_path / "run", "task.label=grade")
    with pytest.raises(CollectionError, match="expected a number"):
        prepare(config.task, root=workshop.root, cache=workshop.cache)


def test_a_drawn_split_has_every_stratum_in_every_part(
    records: dict[str, Path], workshop: Workshop, tmp_path: Path
) -> None:
    for kind in KINDS:
        config = workshop.config(records[kind], tmp_path / "run", "task.split.rule=by_subject")
        data = prepare(config.task, root=workshop.root, cache=workshop.cache)
        split = make_split(data.items(), config.task.split, data.rank)
        for part in ("train", "val", "test"):
            held = {case.label for case in data.cases if split[case.key] == part}
            assert held == {case.label for case in data.cases}, (kind, part)


def test_strata_are_the_rarest_finding_and_fifths_of_a_number(
    records: dict[str, Path], workshop: Workshop
) -> None:
    record = workshop.config(records["multilabel"], Path("x")).task
    assert strata(record, [(1, 0), (1, 1), (1, 0), (0, 0), (-1, 1)]) == [0, 1, 0, 2, 1]
    record = workshop.config(records["regression"], Path("x")).task
    groups = strata(record, [(float(value),) for value in range(50)])
    assert [groups.count(group) for group in range(5)] == [10] * 5
    assert groups == sorted(groups)


def test_a_finding_without_a_case_is_warned_of(
    records: dict[str, Path], workshop: Workshop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = ["task.classes=[top,bottom,hernia]", "protocol=logistic", "image_size=32", "baseline=false"]
    config = workshop.config(records["multilabel"], tmp_path / "run", *items)
    with caplog.at_level(logging.WARNING):
        folder = evaluate(finetune(config))
    assert "train has no case with hernia" in caplog.text
    assert scored(folder)["pretrained", "auc", "hernia"]["mean"] is None  # undefined, not 0
    assert scored(folder)["pretrained", "auc", ""]["mean"] > 0
