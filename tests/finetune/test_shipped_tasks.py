"""Shipped records: from the folder that `medloom data fetch` leaves, or a user's own, to a score."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medloom.data.fetch.fetch import fetch
from medloom.data.fetch.plan import given, plan
from medloom.finetune.config import load_config
from medloom.finetune.data import prepare
from medloom.finetune.evaluation import evaluate
from medloom.finetune.record import KINDS
from medloom.finetune.run import finetune
from medloom.finetune.splits import make_split
from PIL import Image

from ..data.fetch import sets

CATALOG = sets.built_in()
MSD = sorted(CATALOG.msd)
MEDMNIST = sorted(CATALOG.medmnist)


def fetched(name: str, folder: Path, size: int = 28, counts: tuple[int, int, int] = (5, 3, 4)) -> Path:
    """The user's folder of datasets, in which the dataset was just fetched from a generated archive."""
    site = folder / "site"
    site.mkdir()
    if name in CATALOG.msd:
        task = CATALOG.msd[name]
        archive = sets.msd_tar(site / f"{task.folder}.tar", task)
        wanted = plan(sets.served(CATALOG, site, "http://localhost"), name)
    else:
        file = f"{name}.npz" if size == 28 else f"{name}_{size}.npz"
        archive = sets.medmnist_npz(site / file, CATALOG.medmnist[name], size, counts)
        wanted = plan(sets.served(CATALOG, site, "http://localhost"), name, size)
    found = fetch(given(wanted, [archive]), folder / "datasets")
    assert found.collection is not None
    return folder / "datasets"


@pytest.mark.parametrize("name", [*MSD, *MEDMNIST])
def test_a_record_finds_its_data_where_fetch_puts_them(name: str, tmp_path: Path) -> None:
    root = fetched(name, tmp_path)
    record = load_config(name, ["encoder=x"]).task
    data = prepare(record, root=root, cache=tmp_path / "cache")
    assert not data.skipped
    if name in CATALOG.msd:
        assert len(data.cases) == sets.TRAIN  # the unlabelled ones are not among them
        channels = len(CATALOG.msd[name].channels)
        assert all(data.image(case).shape == (channels, *case.shape) for case in data.cases)
        present = {int(value) for case in data.cases for value in data.locations[case.key]}
        assert present == set(range(1, record.outputs))
    else:
        splits = [case.meta["split"] for case in data.cases]
        assert [splits.count(split) for split in ("train", "val", "test")] == [5, 3, 4]
        facts = CATALOG.medmnist[name]
        assert {data.image(case).shape[0] for case in data.cases} == {facts.n_channels}
        if record.kind == "multilabel":
            assert {len(case.target) for case in data.cases} == {facts.n_classes}
            assert {value for case in data.cases for value in case.target} == {0.0, 1.0}
        else:
            assert {case.target for case in data.cases} <= {(float(k),) for k in range(facts.n_classes)}


@pytest.mark.parametrize(
    ("name", "encoder"),
    [("msd-task03-liver", "encoder3d"), ("msd-task01-braintumour", "encoder3d"), ("pathmnist", "encoder2d"),
     ("chestmnist", "encoder2d"), ("retinamnist", "encoder2d"), ("organmnist3d", "encoder3d")],
)  # fmt: skip
def test_a_record_runs_from_the_archive_to_a_score(
    name: str, encoder: str, workshop: Any, tmp_path: Path
) -> None:
    outputs = len(CATALOG.medmnist[name].labels) if name in CATALOG.medmnist else 0
    root = fetched(name, tmp_path, counts=(outputs + 3, 4, outputs + 1))
    config = load_config(name, [
        f"encoder={workshop.root / encoder}", f"root={root}", f"cache={tmp_path / 'cache'}",
        f"out={tmp_path / 'run'}", "steps=2", "validations=1", "batch_size=2", "head.width=8", "head.most=16",
        "device=cpu",
    ])  # fmt: skip
    folder = evaluate(finetune(config), out=tmp_path / "evaluation")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["task"] == name
    assert summary["leakage"]["status"] == "clean"
    assert {row["metric"] for row in summary["arms"]["pretrained"]} == set(config.task.metrics)
    if config.task.kind == "multilabel":
        parts = {row["structure"] for row in summary["arms"]["pretrained"] if row["metric"] == "auc"}
        assert parts == {"", *config.task.classes}
    with (folder / "cases.csv").open() as file:
        tested = {row["case"] for row in csv.DictReader(file)}
    assert len(tested) == (outputs + 1 if outputs else 1)


def test_another_size_of_medmnist_is_a_matter_of_two_keys(tmp_path: Path) -> None:
    root = fetched("breastmnist", tmp_path, size=64)
    items = ["task.source.root=breastmnist_64", "task.source.options.size=64"]
    record = load_config("breastmnist", ["encoder=x", *items]).task
    data = prepare(record, root=root, cache=tmp_path / "cache")
    assert {case.shape for case in data.cases} == {(64, 64)}


def own_images(root: Path, kind: str) -> list[str]:
    """Images as the head of configs/tasks/generic-KIND.yaml asks for them; returns what the user adds."""
    rng = np.random.default_rng(0)
    names = [f"{'ab'[number % 2]}/{number:02d}.png" for number in range(24)]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
        if kind == "segmentation":
            Image.fromarray((pixels > 128).astype(np.uint8) * 255).save(root / f"{name[:-4]}_mask.png")
    words = {"multilabel": ["mass|oedema", "mass", "", "No Finding", "oedema", "mass"],
             "ordinal": ["mild", "none", "severe"],
             "regression": ["1.5", "2.25", "-3", "12", "40"]}.get(kind)  # fmt: skip
    column = {"multilabel": "findings", "ordinal": "grade", "regression": "value"}.get(kind)
    if words:
        rows = [{"file": name, "subject": f"s{number}", column: words[number % len(words)]}
                for number, name in enumerate(names)]  # fmt: skip
        with (root / "labels.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    if kind == "detection":
        images = [{"id": n, "file_name": name, "width": 32, "height": 32} for n, name in enumerate(names)]
        boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [4, 6, 10, 12]} for n in range(24)]
        facts = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "nodule"}]}
        (root / "boxes.json").write_text(json.dumps(facts))
    classes = {"classification": "a,b", "retrieval": "a,b", "multilabel": "mass,oedema",
               "ordinal": "none,mild,severe", "detection": "nodule"}.get(kind)  # fmt: skip
    return [f"task.classes=[{classes}]"] if classes else []


@pytest.mark.parametrize("kind", KINDS)
def test_a_generic_record_takes_a_users_own_images(kind: str, tmp_path: Path) -> None:
    items = own_images(tmp_path / "images", kind)
    record = load_config(f"generic-{kind}", ["encoder=x", "task.salt=a salt for tests only", *items]).task
    data = prepare(record, root=tmp_path / "images", cache=tmp_path / "cache")
    assert len(data.cases) == 24 and not data.skipped
    parts = make_split(data.items(), record.split, data.rank)
    assert set(parts.values()) == {"train", "val", "test"}
    if kind == "multilabel":  # no finding is an answer, too
        found = [case.target for case in data.cases]
        assert [found.count(target) for target in ((1, 1), (1, 0), (0, 0), (0, 1))] == [4, 8, 8, 4]
    elif kind not in ("segmentation", "detection"):
        assert len({case.target for case in data.cases}) == {"ordinal": 3, "regression": 5}.get(kind, 2)
