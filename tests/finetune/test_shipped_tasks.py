"""Records of the Decathlon and MedMNIST, from the folder that `medloom data fetch` leaves to a score."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from medloom.data.fetch.fetch import fetch
from medloom.data.fetch.plan import given, plan
from medloom.finetune.config import load_config
from medloom.finetune.data import prepare
from medloom.finetune.evaluation import evaluate
from medloom.finetune.run import finetune

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
