"""Task records of the Decathlon and MedMNIST say what the catalogue says."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import pytest
from medloom.data.catalog import load
from medloom.data.config import CONFIGS
from medloom.finetune.config import load_config
from medloom.finetune.record import KINDS, TaskRecord

CATALOG = load(())
KIND = {"multi-class": "classification", "binary-class": "classification", "ordinal-regression": "ordinal",
        "multi-label, binary-class": "multilabel"}  # fmt: skip
GENERIC = {f"generic-{kind}" for kind in KINDS}
SHIPPED = {path.stem for path in CONFIGS.glob("tasks/*.yaml")}

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


def record(name: str) -> TaskRecord:
    return load_config(name, ["encoder=x"]).task


def test_there_is_a_record_of_every_task_and_of_every_kind() -> None:
    assert set(CATALOG.msd) | set(CATALOG.medmnist) | GENERIC <= SHIPPED
    assert {record(name).kind for name in GENERIC} == set(KINDS)


def test_the_page_lists_every_record_with_its_tolerance() -> None:
    table = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`([\w-]+)`", " ".join(row.split("|")[1] for row in table))) == SHIPPED
    for name, facts in CATALOG.msd.items():
        row = next(row for row in table if f"`{name}`" in row)
        assert row.endswith(f"| {facts.nsd_tolerance_mm:g} mm |") and f"| {facts.n_train} |" in row


@pytest.mark.parametrize("name", sorted(CATALOG.msd))
def test_a_decathlon_record_agrees_with_the_catalogue(name: str) -> None:
    found, facts = record(name), CATALOG.msd[name]
    assert (found.kind, found.source["layout"]) == ("segmentation", "msd")
    assert found.structures == {value: word for value, word in facts.labels.items() if value}
    assert found.nsd_tolerance_mm == facts.nsd_tolerance_mm
    assert found.verified is facts.nsd_tolerance_status.startswith("read")
    assert PurePosixPath(found.source["root"]) == PurePosixPath(name, facts.folder)
    assert found.source["licence"] == facts.licence
    assert found.split.rule == "by_subject" and "withheld" in found.note  # test labels are not published


@pytest.mark.parametrize("name", sorted(CATALOG.medmnist))
def test_a_medmnist_record_agrees_with_the_catalogue(name: str) -> None:
    found, facts = record(name), CATALOG.medmnist[name]
    assert (found.kind, found.source["layout"]) == (KIND[facts.task], "medmnist")
    assert found.classes == [facts.labels[value] for value in sorted(facts.labels)]
    assert len(found.classes) == facts.n_classes
    assert found.source["licence"] == facts.licence
    assert found.source["root"] == name and found.source["options"] == {"subset": name, "size": 28}
    assert found.split.rule == "declared"
    assert {"auc", "accuracy"} <= set(found.metrics)


@pytest.mark.parametrize("name", [*CATALOG.msd, *CATALOG.medmnist])
def test_a_record_names_the_dataset_and_its_certain_relatives(name: str) -> None:
    found, dataset = record(name), CATALOG[name]
    assert found.dataset == found.name == name
    assert found.source["modality"] == dataset.modalities[0]
    assert found.source["organ"] in dataset.organs
    certain = {relative.id for relative in CATALOG.related(name) if relative.level == "certain"}
    assert certain <= set(found.related)
    assert all(relative in CATALOG for relative in found.related)


@pytest.mark.parametrize("name", [name for name in CATALOG.medmnist if name.startswith("organ")])
def test_no_mirror_image_turns_left_into_right_where_these_are_classes(name: str) -> None:
    assert record(name).flips == []
