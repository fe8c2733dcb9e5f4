"""Annotations from the source into `key.json` and the manifest: on the stored grid, without a name."""

from __future__ import annotations

import json
import textwrap
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from medloom.data.annotations.kinds import parse_kinds
from medloom.data.collection import Collection, scan
from medloom.data.ingest.build import build
from medloom.data.ingest.ingest import samples_of, secrets_of
from medloom.data.ingest.recover import recover
from medloom.data.ingest.units import measured
from medloom.data.layouts.base import Source
from medloom.data.sample import Reading, Record, Shape
from medloom.data.shards.format import encode_meta
from medloom.data.shards.manifest import Manifest
from medloom.data.shards.reader import Shards
from PIL import Image as Pillow

SALT = b"a-salt-for-tests"
READER = "Dr. Mustermann"


def record_with_everything(folder: Path) -> tuple[Source, Record]:
    """A volume that is turned when read, with shapes and two readings by a named person."""
    array = np.zeros((7, 6, 5), np.int16)
    array[5, 1, 3] = 99
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-1.0, -1.0, 1.0, 1.0])), folder / "v.nii")
    shapes = (
        Shape(kind="point", label="tip", points=((3.5, 1.5, 5.5),), annotator=READER),
        Shape(kind="box", label="lesion", points=((3.0, 1.0, 5.0), (4.0, 2.0, 6.0)), group=2),
    )
    readings = (
        Reading(annotator=READER, labels={"grade": "2"}),
        Reading(annotator="Dr. Musterfrau", labels={"grade": 3, "age": 97}),
    )
    record = Record(
        dataset="ct", name="v.nii", subject="v", paths=(folder / "v.nii",), labels={"grade": 2},
        shapes=shapes, readings=readings,
    )  # fmt: skip
    kinds = parse_kinds({"grade": {"kind": "ordinal", "order": [0, 1, 2, 3]}}, "x")
    return Source(dataset="ct", layout="table", root=folder, label_kinds=kinds), record


def test_shapes_and_readings_stand_in_the_metadata_on_the_stored_grid(tmp_path: Path) -> None:
    source, record = record_with_everything(tmp_path)
    (sample,) = samples_of(source, record, SALT)
    point, box = sample.meta["shapes"]
    assert sample.image[(0, *np.floor(point["points"][0]).astype(int))] == 99
    assert np.subtract(*box["points"][::-1]).tolist() == [1, 1, 1] and box["group"] == 2
    first, second = sample.meta["readings"]
    assert (first["labels"], second["labels"]) == ({"grade": 2}, {"grade": 3, "age": 90})
    assert first["annotator"] == point["annotator"] != second["annotator"]
    text = encode_meta(sample.key, sample.meta).decode()
    assert "Muster" not in text and len(first["annotator"]) == 16


def test_annotators_are_secrets_of_the_record(tmp_path: Path) -> None:
    source, record = record_with_everything(tmp_path)
    assert {READER, "Dr. Musterfrau"} <= secrets_of(source, record)


def test_an_annotator_has_one_key_in_a_dataset_and_another_in_the_next(tmp_path: Path) -> None:
    source, record = record_with_everything(tmp_path)
    (one,) = samples_of(source, record, SALT)
    (other,) = samples_of(replace(source, dataset="mr"), replace(record, dataset="mr", name="x"), SALT)
    assert one.meta["readings"][0]["annotator"] != other.meta["readings"][0]["annotator"]


@pytest.mark.parametrize(
    "change",
    [
        {"shapes": ()},
        {"readings": ()},
        {"labels": {"grade": 3}},
        {"readings": (Reading(annotator="other", labels={"grade": "2"}),)},
        {"shapes": (Shape(kind="point", label="tip", points=((3.5, 1.5, 5.0),), annotator=READER),)},
    ],
)
def test_a_changed_annotation_changes_the_inputs_of_the_unit(tmp_path: Path, change: dict) -> None:
    source, record = record_with_everything(tmp_path)
    assert measured(source, record)[1] != measured(source, replace(record, **change))[1]


def test_a_reader_s_changed_mask_file_changes_the_inputs(tmp_path: Path) -> None:
    source, record = record_with_everything(tmp_path)
    mask = tmp_path / "m.png"
    mask.write_bytes(b"1")
    record = replace(record, readings=(Reading(annotator="a", mask=mask),))
    before = measured(source, record)
    mask.write_bytes(b"22")
    after = measured(source, record)
    assert before[1] != after[1] and after[0] == before[0] + 1


def collection(folder: Path, kinds: str, rows: str) -> Collection:
    """Three pictures with labels from a table."""
    folder.mkdir(exist_ok=True)
    for number in range(3):
        pixels = np.full((20, 30), 40 * number + 9, np.uint8)
        Pillow.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "manifest.csv").write_text("path,findings,grade,age\n" + rows)
    path = folder / "c.yaml"
    path.write_text(
        textwrap.dedent(f"""
        name: c
        salt: a-salt-for-tests
        sources:
          - dataset: cxr
            layout: table
            modality: x-ray
            label_kinds: {kinds}
            options: {{labels: [findings, grade, age]}}
        """)
    )
    return Collection.load(path)


KINDS = (
    "{findings: {kind: multi-label, separator: '|'}, grade: {kind: ordinal, order: [0, 1, 2]}, age: value}"
)
ROWS = "0.png,Edema|Cardiomegaly,0,93\n1.png,Edema,2,45\n2.png,Mass,1,30\n"


def test_kinds_are_recorded_in_the_manifest_and_labels_counted_one_by_one(tmp_path: Path) -> None:
    made = build(collection(tmp_path / "in", KINDS, ROWS), tmp_path / "out")
    (source,) = Manifest.load(tmp_path / "out").sources
    assert made.manifest.sources == (source,)
    assert source.label_kinds == {
        "age": {"kind": "value"},
        "findings": {"kind": "multi-label"},
        "grade": {"kind": "ordinal", "order": [0, 1, 2]},
    }
    assert source.labels["findings"] == {"Cardiomegaly": 1, "Edema": 2, "Mass": 1}
    assert source.labels["age"] == {"90.0": 1, "45.0": 1, "30.0": 1}
    shards = Shards.open(tmp_path / "out")
    ages = sorted(shards.meta(ref)["labels"]["age"] for ref in shards.refs("cxr-2d"))
    assert ages == [30.0, 45.0, 90.0]


def test_a_lost_manifest_is_recovered_with_its_kinds(tmp_path: Path) -> None:
    made = build(collection(tmp_path / "in", KINDS, ROWS), tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    found, _ = recover(tmp_path / "out", {s.file: s.sha256 for s in made.manifest.shards})
    assert found.sources[0].label_kinds == made.manifest.sources[0].label_kinds


def test_another_declaration_builds_the_unit_again(tmp_path: Path) -> None:
    build(collection(tmp_path / "in", KINDS, ROWS), tmp_path / "out")
    build(collection(tmp_path / "in", "{findings: single, age: value}", ROWS), tmp_path / "out")
    shards = Shards.open(tmp_path / "out")
    found = {shards.meta(ref)["labels"]["findings"] for ref in shards.refs("cxr-2d")}
    assert found == {"Edema|Cardiomegaly", "Edema", "Mass"}


def test_a_label_outside_its_declaration_is_listed_before_anything_is_built(tmp_path: Path) -> None:
    bad = collection(tmp_path / "in", KINDS, ROWS.replace("Mass,1", "Mass,5"))
    (failure,) = scan(bad).failures
    assert failure.path == "2.png" and "label grade: 5 is not among its declared values" in failure.reason


def test_a_date_column_refuses_the_image_without_repeating_the_date(tmp_path: Path) -> None:
    bad = collection(tmp_path / "in", "{}", ROWS.replace("2.png,Mass", "2.png,2021-05-06"))
    build(bad, tmp_path / "out")
    text = (tmp_path / "out" / "failures.jsonl").read_text()
    assert "holds a date" in text and "2021" not in text


def test_a_manifest_of_an_older_format_has_no_kinds_and_is_read(tmp_path: Path) -> None:
    build(collection(tmp_path / "in", KINDS, ROWS), tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    data = json.loads(path.read_text())
    data["format"] = 2
    for source in data["sources"]:
        del source["label_kinds"]
    del data["hash"]
    path.write_text(json.dumps(data))
    assert Manifest.load(tmp_path / "out").sources[0].label_kinds == {}
