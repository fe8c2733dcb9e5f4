"""Five folds by patient, scored as one; label maps in the geometry of the source."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from medloom.data.errors import CollectionError, ConfigError
from medloom.finetune.evaluation import evaluate
from medloom.finetune.prediction.labelmaps import write_label_map
from medloom.finetune.run import finetune, read_run
from medloom.finetune.splits import Item, take_fold

Items = tuple[list[Item], dict[str, str]]


def items(count: int = 23) -> Items:
    """Two images a subject in three classes, the last of them in 3 subjects only; every fourth is test."""
    made, split = [], {}
    for number in range(count):
        label = 2 if number % 8 == 1 else number % 2
        for view in range(2):
            item = Item(f"k{number}-{view}", f"s{number}", None, label)
            made.append(item)
            split[item.key] = "test" if number % 4 == 0 else "val" if number % 4 == 1 else "train"
    return made, split


def test_folds_validate_every_subject_once_and_leave_test_alone() -> None:
    made, split = items()
    folds = [take_fold(made, split, fold, 5, seed=0) for fold in range(5)]
    subject = {item.key: item.subject for item in made}
    validated: list[str] = []
    for fold in folds:
        assert {key for key, part in fold.items() if part == "test"} == {
            key for key, part in split.items() if part == "test"
        }
        val = {subject[key] for key, part in fold.items() if part == "val"}
        assert not val & {subject[key] for key, part in fold.items() if part == "train"}
        validated += val
    assert sorted(validated) == sorted({subject[key] for key, part in split.items() if part != "test"})
    sizes = [sum(part == "val" for part in fold.values()) for fold in folds]
    assert max(sizes) - min(sizes) <= 2
    assert take_fold(made, split, 0, 5, seed=1) != folds[0]


def test_folds_share_the_classes_evenly() -> None:
    made, split = items(43)
    label = {item.key: item.label for item in made}
    for fold in range(3):
        part = take_fold(made, split, fold, 3, seed=0)
        assert {label[key] for key, where in part.items() if where == "val"} == {0, 1, 2}


def test_folds_that_cannot_be_are_refused() -> None:
    made, split = items()
    with pytest.raises(ConfigError, match="fold 5 of folds 5"):
        take_fold(made, split, 5, 5, seed=0)
    with pytest.raises(CollectionError, match="lower folds"):
        take_fold(made, split, 0, 40, seed=0)


@pytest.fixture(scope="module")
def folds(workshop: Any, volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two of two folds of the segmentation task, one arm each."""
    root = tmp_path_factory.mktemp("folds")
    return [
        finetune(workshop.config(volumes, root / f"fold{fold}", f"fold={fold}", "folds=2", "baseline=false",
                                 f"patch=[{16 + 8 * fold},16,16]"))
        for fold in range(2)
    ]  # fmt: skip


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_two_runs_are_scored_as_one_on_test(folds: list[Path], tmp_path: Path) -> None:
    folder = evaluate(folds, out=tmp_path / "both", save=True)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["members"] == 2
    assert summary["training"]["pretrained"]["members"] == 2
    assert "2 runs" in summary["note"]
    single = [rows(evaluate(fold, out=tmp_path / fold.name)) for fold in folds]
    both = rows(folder)
    assert [row["case"] for row in both] == [row["case"] for row in single[0]]
    assert (folder / "report.html").is_file()
    assert len(list((folder / "predictions" / "pretrained").glob("*.nii.gz"))) == 3


def test_validation_is_predicted_by_the_fold_that_held_it_out(folds: list[Path], tmp_path: Path) -> None:
    folder = evaluate(folds, split="val", out=tmp_path / "val")
    found = {(row["case"], row["structure"], row["metric"]): row["value"] for row in rows(folder)}
    alone: dict[tuple[str, str, str], str] = {}
    for fold in folds:
        own = rows(evaluate(fold, split="val", out=tmp_path / fold.name))
        _, _, split = read_run(fold)
        assert {row["case"] for row in own} == {key for key, part in split.items() if part == "val"}
        alone |= {(row["case"], row["structure"], row["metric"]): row["value"] for row in own}
    assert found == alone


def test_runs_of_different_tasks_are_refused(
    folds: list[Path], classification_run: Path, segmentation_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="give runs of one task"):
        evaluate([folds[0], classification_run], out=tmp_path / "out")
    with pytest.raises(ConfigError, match="arms"):
        evaluate([folds[0], segmentation_run], out=tmp_path / "out")


def test_probabilities_of_classes_are_averaged(classification_run: Path, tmp_path: Path) -> None:
    twice = evaluate([classification_run, classification_run], out=tmp_path / "twice")
    once = evaluate(classification_run, out=tmp_path / "once")
    read = [(folder / "predictions.csv").read_text().splitlines() for folder in (twice, once)]
    for a, b in zip(*read, strict=True):
        left, right = a.split(","), b.split(",")
        for x, y in zip(left, right, strict=True):
            assert x == y or abs(float(x) - float(y)) < 1e-6


TILT = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "ASL", "SLA", "IRP"])
@pytest.mark.parametrize("oblique", [False, True])
def test_a_label_map_lies_on_the_grid_of_the_file(
    codes: str, oblique: bool, tmp_path: Path, workshop: Any, task_of: Callable[..., Any]
) -> None:
    """The reference itself as the prediction must come out as the file that it was read from."""
    orientation = nib.orientations
    turn = orientation.inv_ornt_aff(
        orientation.ornt_transform(orientation.axcodes2ornt("RAS"), orientation.axcodes2ornt(codes)),
        (18, 14, 12),
    )
    world = np.eye(4)
    world[:3, :3] = (TILT if oblique else np.eye(3)) @ np.diag([0.7, 0.9, 2.5])
    world[:3, 3] = [-31.5, 20.25, -7.125]
    affine = (world @ turn).astype(np.float32).astype(float)
    rng = np.random.default_rng(0)
    folder = tmp_path / "odd"
    folder.mkdir()
    table = []
    for number in range(6):
        labels = rng.choice([0, 2, 5], size=(12, 14, 18)).astype(np.uint8)
        image = (labels * 40 + rng.normal(0, 4, labels.shape)).astype(np.int16)
        for name, array in (("image", image), ("mask", labels)):
            nib.Nifti1Image(array, affine).to_filename(folder / f"p{number}-{name}.nii.gz")
        split = ("train", "val", "test")[number % 3]
        table.append(f"p{number}-image.nii.gz,p{number}-mask.nii.gz,p{number},{split}")
    (folder / "manifest.csv").write_text("path,mask,subject,split\n" + "\n".join(table) + "\n")
    record = workshop.record(f"volumes-{codes}{int(oblique)}", {
        "kind": "segmentation", "structures": {2: "a", 5: "b"},
        "source": {"dataset": "odd", "layout": "table", "root": str(folder), "modality": "mri",
                   "options": {"mask": "mask", "subject": "subject", "split": "split"}},
    })  # fmt: skip
    task = task_of(record)
    found = []
    for case in task.cases["test"]:
        prediction = task.data.mask(case)
        path = write_label_map(tmp_path / case.key, task.label_map(prediction), case.meta)
        written = nib.load(path)
        assert isinstance(written, nib.Nifti1Image)
        assert np.array_equal(written.affine, affine)
        assert written.header.get_xyzt_units()[0] == "mm"
        assert nib.aff2axcodes(written.affine) == tuple(codes)
        assert np.allclose(written.header.get_zooms(), np.linalg.norm(affine[:3, :3], axis=0))
        found.append(np.asarray(written.dataobj))
    wanted = [np.asarray(nib.load(folder / f"p{number}-mask.nii.gz").dataobj) for number in (2, 5)]  # type: ignore
    assert all(any(np.array_equal(one, other) for other in found) for one in wanted)
    assert found[0].dtype == np.uint8


@pytest.mark.parametrize("codes", ["RAS", "PIR", "LSA"])
def test_a_flat_nifti_gets_a_flat_label_map(codes: str, tmp_path: Path) -> None:
    from medloom.data.readers.nifti import read

    orientation = nib.orientations
    own = orientation.axcodes2ornt(tuple(codes))
    turn = orientation.inv_ornt_aff(
        orientation.ornt_transform(orientation.axcodes2ornt("RAS"), own), (9, 7, 1)
    )
    affine = np.diag([0.5, 0.75, 2.0, 1.0]) @ turn
    stored = np.random.default_rng(0).integers(0, 3, (9, 7) if own[0, 0] == 0 else (7, 9)).astype(np.uint8)
    nib.Nifti1Image(stored, affine).to_filename(tmp_path / "flat.nii")
    image = read([tmp_path / "flat.nii"])[0]
    assert image.affine is not None
    meta = {"shape": list(image.array.shape), "affine": image.affine.tolist(), "facts": image.facts,
            "spacing": list(image.spacing or ())}  # fmt: skip
    written = nib.load(write_label_map(tmp_path / "out", image.array[0], meta))
    assert isinstance(written, nib.Nifti1Image)
    assert np.array_equal(np.asarray(written.dataobj), stored)
    assert np.allclose(written.affine, nib.load(tmp_path / "flat.nii").affine)  # type: ignore[attr-defined]
