"""finetune/evaluation.py, scoring, leakage, overlays: every number comes from the long table."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medloom.data.errors import CheckpointError, ConfigError
from medloom.data.shards.reader import SampleRef
from medloom.finetune.data import Case
from medloom.finetune.evaluation import evaluate
from medloom.finetune.leakage import statement
from medloom.finetune.record import SplitRule, TaskRecord
from PIL import Image
from sklearn.metrics import roc_auc_score


@pytest.fixture(scope="module")
def segmentation(segmentation_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluate(segmentation_run, out=tmp_path_factory.mktemp("segmentation"))


@pytest.fixture(scope="module")
def classification(classification_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluate(classification_run, out=tmp_path_factory.mktemp("classification"))


def table(folder: Path, name: str = "cases.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_means_are_those_of_the_long_table(segmentation: Path) -> None:
    rows, found = table(segmentation), summary(segmentation)
    assert len(rows) == 2 * 3 * 2 * 3  # arms, cases, structures, metrics
    for arm, scores in found["arms"].items():
        for score in scores:
            if score["structure"] == "mean":
                continue
            values = [
                float(row["value"]) for row in rows
                if (row["arm"], row["metric"], row["structure"]) == (arm, score["metric"], score["structure"])
                and row["status"] != "excluded"
            ]  # fmt: skip
            assert math.isclose(score["mean"], float(np.mean(values)), rel_tol=1e-9)
            assert score["n"] == len(values)
            assert score["low"] <= score["mean"] <= score["high"]
    for score in found["arms"]["scratch"]:
        parts = [s["mean"] for s in found["arms"]["scratch"]
                 if s["metric"] == score["metric"] and s["structure"] != "mean"]  # fmt: skip
        if score["structure"] == "mean":
            assert math.isclose(score["mean"], float(np.mean(parts)), rel_tol=1e-9)


def test_the_arms_are_compared_case_by_case(segmentation: Path) -> None:
    found = summary(segmentation)
    means = {
        (arm, s["metric"], s["structure"]): s["mean"] for arm, scores in found["arms"].items() for s in scores
    }
    assert len(found["comparisons"]) == 9
    for row in found["comparisons"]:
        assert (row["a"], row["b"]) == ("pretrained", "scratch")
        place = (row["metric"], row["structure"])
        assert math.isclose(
            row["difference"], means["pretrained", *place] - means["scratch", *place], abs_tol=1e-9
        )
        assert row["p_holm"] >= row["p"]


def test_classification_scores_agree_with_the_written_predictions(classification: Path) -> None:
    rows, found = table(classification, "predictions.csv"), summary(classification)
    assert set(found["arms"]) == {"pretrained", "random", "scratch"}
    for arm, scores in found["arms"].items():
        mine = [row for row in rows if row["arm"] == arm]
        truth = [row["truth"] == "bright" for row in mine]
        bright = [float(row["p_bright"]) for row in mine]
        assert np.allclose([float(r["p_dark"]) + b for r, b in zip(mine, bright, strict=True)], 1, atol=1e-5)
        auc = next(score for score in scores if score["metric"] == "auc")
        assert math.isclose(auc["mean"], roc_auc_score(truth, bright), abs_tol=1e-9)
        assert auc["n"] == len(mine) == 12
    assert found["n"]["test"] == {"cases": 12, "subjects": 6}


def test_worst_cases_have_pictures_and_the_report_is_written(
    segmentation: Path, classification: Path
) -> None:
    for folder in (segmentation, classification):
        found = summary(folder)
        assert found["worst"]
        for row in found["worst"]:
            picture = np.asarray(Image.open(folder / row["image"]))
            assert picture.ndim == 3
            assert picture.std() > 0
        assert (folder / "report.html").stat().st_size > 10_000
    dice = [row["value"] for row in summary(segmentation)["worst"] if row["arm"] == "scratch"]
    assert len(dice) == 3


def test_the_outlines_lie_on_the_reference(tmp_path: Path) -> None:
    from medloom.finetune.overlays import PREDICTION, REFERENCE, segmentation_overlay

    image = np.zeros((1, 4, 12, 12), dtype=np.int16)
    stats = {"percentiles": {"0.5": [0.0], "99.5": [100.0]}, "min": [0.0], "max": [100.0], "mean": [50.0],
             "std": [20.0], "foreground": {"rule": "otsu"}}  # fmt: skip
    case = Case(None, {"key": "k", "ndim": 3, "dtype": "int16", "stats": stats})  # type: ignore[arg-type]
    reference = np.zeros((4, 12, 12), dtype=np.uint8)
    prediction = reference.copy()
    reference[2, 2:6, 3:7] = 1
    prediction[2, 2:6, 3:7] = 1
    prediction[2, 8:10, 8:10] = 1
    path = segmentation_overlay(tmp_path / "a.png", case, image, reference, prediction)
    picture = np.asarray(Image.open(path))
    factor = picture.shape[0] // 12
    front_on_top = 12 - 1 - 9  # row 9 of the array, which runs to the front
    assert tuple(picture[front_on_top * factor, 8 * factor]) == PREDICTION
    assert not (picture == REFERENCE).all(axis=2).any()  # equal outlines: the prediction is drawn last


def test_nothing_that_an_evaluation_writes_names_a_person(segmentation: Path, classification: Path) -> None:
    for folder in (segmentation, classification):
        for path in folder.rglob("*"):
            assert "patient-" not in path.name
            assert not path.is_file() or b"patient-" not in path.read_bytes()


def test_validation_can_be_scored_and_other_splits_are_refused(
    segmentation_run: Path, tmp_path: Path
) -> None:
    folder = evaluate(segmentation_run, split="val", out=tmp_path / "val", mirror=True)
    assert summary(folder)["split"] == "val"
    assert len({row["case"] for row in table(folder)}) == 2
    with pytest.raises(ConfigError, match="test or val"):
        evaluate(segmentation_run, split="train")


def test_damaged_and_unfinished_runs_are_refused(segmentation_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.yaml"):
        evaluate(tmp_path)
    folder = tmp_path / "run"
    shutil.copytree(segmentation_run, folder)
    model = folder / "scratch" / "model.safetensors"
    model.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        evaluate(folder, out=tmp_path / "out")
    (folder / "scratch" / "arm.json").unlink()
    with pytest.raises(CheckpointError, match="not finished"):
        evaluate(folder, out=tmp_path / "out")
    assert not (tmp_path / "out" / "summary.json").exists()


def record(rule: str = "declared") -> TaskRecord:
    return TaskRecord(
        name="t", kind="classification", classes=["a", "b"], related=["twin"],
        source={"dataset": "mine", "layout": "table"}, split=SplitRule(rule),
    )  # fmt: skip


def encoder(datasets: list[str], rules: list[dict[str, Any]], **training: Any) -> dict[str, Any]:
    sources = [{"id": f"{name}-2d", "dataset": name} for name in datasets]
    return {"training": {"sources": sources, **training}, "held_out": {"rules": rules, "not_checked": ["x"]}}


def after(ancestor: dict[str, Any]) -> dict[str, Any]:
    """Trained on another data set, from weights that have a record."""
    return encoder(["other"], [], init_from="first", ancestor=ancestor)


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        (encoder(["other"], []), "clean"),
        (encoder(["mine"], []), "leaked"),
        (encoder(["twin"], []), "leaked"),
        (encoder(["mine"], [{"dataset": "mine", "splits": ["test"]}]), "clean"),
        (encoder(["mine"], [{"dataset": "mine", "splits": ["val"]}]), "leaked"),
        (encoder(["mine"], [{"dataset": "mine", "splits": []}]), "clean"),
        (encoder(["twin"], [{"dataset": "twin", "splits": ["test"]}]), "leaked"),  # its test cases are others
        (encoder(["twin"], [{"dataset": "twin", "splits": []}]), "clean"),
        (encoder(["other"], [], init_from="timm:vit"), "unknown"),
        (encoder(["other"], [], init_from="timm:vit", ancestor={"training": None}), "unknown"),
        (after(encoder(["third"], [])), "clean"),
        (after(encoder(["mine"], [])), "leaked"),
        (after(encoder(["mine"], [{"dataset": "mine", "splits": ["test"]}])), "clean"),
        (after(encoder(["third"], [], init_from="timm:vit")), "unknown"),
        (after(encoder(["third"], [], complete=False)), "unknown"),
        (after(after(encoder(["twin"], []))), "leaked"),
        ({"source": "timm:vit_small"}, "unknown"),
        ({"source": "random:x"}, "clean"),
        ({}, "unknown"),
    ],
)
def test_the_leakage_statement(facts: dict[str, Any], status: str) -> None:
    found = statement(record(), facts, [])
    assert found["status"] == status
    assert found["statement"].endswith(".")


@pytest.mark.parametrize(("objective", "how"), [("simclr", "unlabelled"), ("supervised", "labels and all")])
def test_the_statement_says_whether_labels_of_other_splits_were_seen(objective: str, how: str) -> None:
    first = encoder(["mine"], [{"dataset": "mine", "splits": ["test"]}], objective={"name": objective})
    for facts in (first, after(first)):
        assert f"other splits of mine, {how};" in statement(record(), facts, [])["statement"]
    elsewhere = encoder(["other"], [], objective={"name": "supervised"}, init_from="a", ancestor=first)
    assert f"other splits of mine, {how};" in statement(record(), elsewhere, [])["statement"]


@pytest.mark.parametrize(
    ("held_out", "status"),
    [(["test"], "leaked"), (["val", "test"], "leaked"), (["train"], "clean"), ([], "clean")],
)
def test_what_is_held_out_are_the_splits_that_the_source_says_the_cases_are_in(
    held_out: list[str], status: str
) -> None:
    """The Decathlon's own `test` has no labels; a record's test cases are drawn from its `train`."""
    facts = encoder(["mine"], [{"dataset": "mine", "splits": held_out}])
    drawn = Case(SampleRef(0, 0), {"key": "mine-1", "subject": "s", "split": "train"})
    assert statement(record("by_subject"), facts, [drawn])["status"] == status
    if held_out:
        facts = encoder(["mine"], [{"dataset": "mine", "splits": [word]} for word in held_out])
        assert statement(record("by_subject"), facts, [drawn])["status"] == status


def test_shared_pixels_are_found_in_the_pretraining_shards(
    workshop: Any, pictures: Path, classification_run: Path
) -> None:
    """The task's own shards, passed off as pretraining shards under another dataset name."""
    from medloom.finetune.data import prepare
    from medloom.finetune.run import read_run

    config, _, split = read_run(classification_run)
    data = prepare(config.task, root=workshop.root, cache=workshop.cache)
    cases = [case for case in data.cases if split[case.key] == "test"]
    facts = encoder([], [])
    facts["training"]["sources"] = [{"id": data.shards.manifest.sources[0].id, "dataset": "renamed"}]
    found = statement(config.task, facts, cases, shards=data.shards.root)
    assert found["status"] == "leaked"
    assert f"{len(cases)} of {len(cases)}" in found["statement"]
    facts["training"]["sources"] = [{"id": "elsewhere-2d", "dataset": "elsewhere"}]
    found = statement(config.task, facts, cases, shards=data.shards.root)
    assert found["status"] == "clean"


def test_an_evaluation_always_carries_its_leakage_statement(segmentation: Path) -> None:
    found = summary(segmentation)["leakage"]
    assert found["status"] == "clean"
    assert any("not at hand" in line for line in found["not_checked"])
    assert summary(segmentation)["empty_policy"]


def test_the_draws_that_are_kept_have_the_interval_of_the_summary(
    segmentation: Path, classification: Path
) -> None:
    for folder, metric in ((segmentation, "dice"), (classification, "auc")):
        arms = summary(folder)["arms"]
        with np.load(folder / "draws.npz") as kept:
            assert set(kept.files) >= {f"{arm}|{metric}" for arm in arms}
            for arm, scores in arms.items():
                wanted = next(s for s in scores if s["metric"] == metric and s["structure"] in ("", "mean"))
                low, high = np.nanquantile(kept[f"{arm}|{metric}"], [0.025, 0.975])
                assert low == pytest.approx(wanted["low"], abs=0.02)
                assert high == pytest.approx(wanted["high"], abs=0.02)


def test_one_arm_alone_is_trained_and_scored(workshop: Any, pictures: Path, tmp_path: Path) -> None:
    from medloom.finetune.run import finetune

    random = f"encoder=random:{workshop.root / 'encoder2d'}"
    run = finetune(workshop.config(pictures, tmp_path / "run", "protocol=logistic", "arm=random", random))
    found = summary(evaluate(run))
    assert set(found["arms"]) == {"random"}
    assert found["comparisons"] == []
    assert found["leakage"]["status"] == "clean"
    with pytest.raises(ConfigError, match="did you mean random"):
        workshop.config(pictures, tmp_path / "other", "arm=rondom")
