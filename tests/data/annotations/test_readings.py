"""Several annotators of one image: their masks, their outlines, the consensus, and what stays of each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from medloom.data.annotations.kinds import parse_kinds
from medloom.data.annotations.overlap import dice_by_value
from medloom.data.annotations.readings import annotator_key
from medloom.data.collection import SourceConfig, source_of_config
from medloom.data.errors import CollectionError, ConfigError, ReadError
from medloom.data.ingest.ingest import samples_of
from medloom.data.ingest.units import plan
from medloom.data.layouts.base import Source
from medloom.data.sample import Reading, Record, Sample, Shape
from medloom.data.shards.format import members_of
from PIL import Image as Pillow

SALT = b"a-salt-for-tests"
SIZE = (24, 30)


def box_mask(top: int, left: int, bottom: int, right: int, value: int = 1) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[top:bottom, left:right] = value
    return mask


MASKS = {"ann": box_mask(4, 4, 14, 20), "bob": box_mask(5, 4, 15, 20), "cyd": box_mask(4, 6, 14, 22)}


def outline(annotator: str | None, top: float, left: float, bottom: float, right: float) -> Shape:
    points = ((top, left), (top, right), (bottom, right), (bottom, left))
    return Shape(kind="polygon", label="polyp", points=points, annotator=annotator)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    Pillow.fromarray(np.random.default_rng(0).integers(0, 255, SIZE, np.uint8)).save(tmp_path / "i.png")
    for name, mask in MASKS.items():
        Pillow.fromarray(mask).save(tmp_path / f"{name}.png")
    readings = tuple(
        Reading(annotator=name, mask=tmp_path / f"{name}.png", labels={"grade": grade})
        for name, grade in zip(MASKS, (1, 2, 2), strict=True)
    )
    return Record(dataset="us", name="i.png", subject="i", paths=(tmp_path / "i.png",), readings=readings)


def sample(record: Record, **options) -> Sample:
    kinds = parse_kinds({"grade": {"kind": "ordinal", "order": [0, 1, 2]}}, "x")
    source = Source(dataset="us", layout="table", root=record.paths[0].parent, label_kinds=kinds, **options)
    (found,) = samples_of(source, record, SALT)
    list(members_of(found))  # what cannot be stored is refused here
    return found


def test_without_a_method_the_annotators_masks_are_measured_and_none_is_stored(record: Record) -> None:
    found = sample(record)
    assert found.mask is None and found.meta["mask"] is None and found.meta["labels"] == {}
    ann, bob, cyd = found.meta["readings"]
    assert ann["mask"]["voxels"] == {"1": 160} and ann["labels"] == {"grade": 1}
    expected = dice_by_value(MASKS["ann"], MASKS["bob"])["1"]
    assert ann["mask"]["dice"][bob["annotator"]]["1"] == expected == pytest.approx(0.9)
    assert bob["mask"]["dice"][ann["annotator"]] == ann["mask"]["dice"][bob["annotator"]]
    assert set(cyd["mask"]["dice"]) == {ann["annotator"], bob["annotator"]}


@pytest.mark.parametrize("method", ["majority", "staple"])
def test_the_consensus_becomes_the_mask_and_the_labels(record: Record, method: str) -> None:
    if method == "staple":
        pytest.importorskip("SimpleITK", reason="STAPLE is SimpleITK's")
    found = sample(record, consensus=method, mask_classes={1: "lesion"})
    votes = sum(mask.astype(int) for mask in MASKS.values())
    assert found.mask is not None and found.meta["mask"]["origin"] == method
    if method == "majority":
        np.testing.assert_array_equal(found.mask, votes >= 2)
    else:
        assert found.mask[votes == 3].all() and not found.mask[votes == 0].any()
    assert found.meta["mask"]["classes"] == {"1": "lesion"}
    assert found.meta["labels"] == {"grade": 2}
    for reading, mask in zip(found.meta["readings"], MASKS.values(), strict=True):
        assert reading["mask"]["dice"]["mask"] == dice_by_value(mask, found.mask)


def test_the_records_own_mask_and_labels_win(record: Record) -> None:
    own = record.paths[0].parent / "own.png"
    Pillow.fromarray(box_mask(0, 0, 3, 3)).save(own)
    found = sample(replace(record, mask=own, labels={"grade": 0}), consensus="majority")
    np.testing.assert_array_equal(found.mask, box_mask(0, 0, 3, 3))
    assert found.meta["labels"] == {"grade": 0} and found.meta["mask"]["origin"] == "file"


def test_outlines_become_the_mask_when_the_source_says_so(record: Record) -> None:
    marked = replace(record, readings=(), shapes=(outline(None, 2, 3, 9, 11),))
    assert sample(marked).mask is None
    found = sample(marked, masks_from="polygons", mask_classes={5: "polyp"})
    np.testing.assert_array_equal(found.mask, box_mask(2, 3, 9, 11, 5))
    assert found.meta["mask"]["origin"] == "polygons" and found.meta["shapes"][0]["label"] == "polyp"


def test_outlines_of_several_annotators_have_a_consensus(record: Record) -> None:
    shapes = (outline("ann", 2, 3, 9, 11), outline("bob", 2, 3, 8, 11), outline("cyd", 3, 3, 9, 11))
    marked = replace(record, readings=(), shapes=shapes)
    found = sample(marked, masks_from="polygons", mask_classes={1: "polyp"}, consensus="majority")
    np.testing.assert_array_equal(found.mask, box_mask(2, 3, 9, 11))
    keys = [annotator_key(SALT, "us", name) for name in MASKS]
    assert [reading["annotator"] for reading in found.meta["readings"]] == keys
    assert [shape["annotator"] for shape in found.meta["shapes"]] == keys
    assert found.meta["readings"][1]["mask"]["voxels"] == {"1": 48}


def test_an_annotators_mask_on_another_grid_refuses_the_record(record: Record) -> None:
    Pillow.fromarray(np.zeros((30, 24), np.uint8)).save(record.paths[0].parent / "bob.png")
    with pytest.raises(ReadError, match=r"bob\.png: mask shape .*transposed"):
        sample(record, consensus="majority")


def config(tmp_path: Path, **options) -> Source:
    (tmp_path / "manifest.csv").write_text("path\na.png\n")
    return source_of_config(SourceConfig(dataset="us", layout="table", **options), tmp_path, "sources[0]")


def test_names_come_from_a_file_and_the_collection_wins(tmp_path: Path) -> None:
    (tmp_path / "names.tsv").write_text("index\tname\n1\tliver\n2\ttumour\n")
    source = config(tmp_path, mask_names="names.tsv", mask_classes={2: "lesion", 3: "vessel"})
    assert source.mask_classes == {1: "liver", 2: "lesion", 3: "vessel"}
    with pytest.raises(CollectionError, match="cannot be read"):
        config(tmp_path, mask_names="none.tsv")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"consensus": "stable"}, r"sources\[0\]\.consensus: unknown 'stable'; did you mean staple"),
        (
            {"masks_from": "polygon", "mask_classes": {1: "a"}},
            "masks_from: unknown 'polygon'; did you mean polygons",
        ),
        ({"masks_from": "polygons"}, "polygons need a value for each name; write mask_classes"),
        ({"label_kinds": {"x": "ordinal"}}, r"label_kinds\.x: an ordinal label needs its order"),
    ],
)
def test_what_cannot_be_done_is_refused_when_the_collection_is_loaded(
    tmp_path: Path, options: dict, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        config(tmp_path, **options)


@pytest.mark.parametrize(
    "change", [{"consensus": "majority"}, {"masks_from": "polygons"}, {"mask_classes": {1: "b"}}]
)
def test_another_way_of_making_masks_builds_the_unit_again(
    tmp_path: Path, record: Record, change: dict
) -> None:
    source = Source(dataset="us", layout="table", root=tmp_path, mask_classes={1: "a"})
    (before,) = plan([(source, record)], shard_bytes=1 << 20, salt=SALT)
    (after,) = plan([(replace(source, **change), record)], shard_bytes=1 << 20, salt=SALT)
    assert before.inputs != after.inputs
