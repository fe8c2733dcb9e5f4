"""data/layouts/voc.py: boxes counted from 1, pictures by name, splits of ImageSets; the real blood smears."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from medloom.data.errors import CollectionError, ConfigError
from PIL import Image as Pillow


def xml(*objects: tuple[str, tuple[object, ...]], filename: str = "x.jpg", extra: str = "") -> bytes:
    keys = ("xmin", "ymin", "xmax", "ymax")
    inner = "".join(
        f"<object><name>{name}</name><bndbox>"
        + "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, corners, strict=True))
        + "</bndbox></object>"
        for name, corners in objects
    )
    return f"<annotation><filename>{filename}</filename>{inner}{extra}</annotation>".encode()


def test_corners_are_pixels_counted_from_one(tmp_path: Path, put: Callable, scan: Callable) -> None:
    put(tmp_path, "JPEGImages/a.jpg")
    put(tmp_path, "Annotations/a.xml", data=xml(("cell", (1, 11, 10, 20)), ("rbc", (3, 3, 3, 3))))
    first, second = scan("voc", tmp_path).only.shapes
    assert (first.kind, first.label, first.points) == ("box", "cell", ((10.0, 0.0), (20.0, 10.0)))
    assert second.points == ((2.0, 2.0), (3.0, 3.0))  # one pixel
    edges = scan("voc", tmp_path, options={"first_pixel": 0}).only.shapes
    assert [shape.points for shape in edges] == [((11.0, 1.0), (20.0, 10.0))]
    with pytest.raises(ConfigError, match="number 0 or 1"):
        scan("voc", tmp_path, options={"first_pixel": 2})


def test_the_picture_has_the_xmls_name_or_the_one_inside(
    tmp_path: Path, put: Callable, scan: Callable
) -> None:
    put(tmp_path, "images/a.png", "images/other.png")
    put(tmp_path, "annotations/a.xml", data=xml(filename="other.png"))
    put(tmp_path, "annotations/b.xml", data=xml(filename="other.png"))
    put(tmp_path, "annotations/c.xml", data=xml(filename="gone.png"))
    found = scan("voc", tmp_path)
    assert set(found.records) == {"images/a.png", "images/other.png"}
    assert found.refused == {
        "annotations/c.xml": f"picture gone.png: none of this name below {tmp_path.name}/"
    }


def test_splits_come_from_the_sets_or_the_folders(tmp_path: Path, put: Callable, scan: Callable) -> None:
    put(tmp_path, "JPEGImages/a.jpg", "JPEGImages/b.jpg", "JPEGImages/c.jpg", "val/d.jpg")
    for name in ("Annotations/a", "Annotations/b", "Annotations/c", "val/d"):
        put(tmp_path, f"{name}.xml", data=xml())
    put(tmp_path, "ImageSets/Main/train.txt", data=b"a\n")
    put(tmp_path, "ImageSets/Main/test.txt", data=b"b 1\n")
    put(tmp_path, "ImageSets/Main/trainval.txt", "ImageSets/Main/cell_train.txt", data=b"a\nb\nc\n")
    records = scan("voc", tmp_path).records.values()
    assert {record.name[-5]: record.split for record in records} == {
        "a": "train",
        "b": "test",
        "c": None,
        "d": "val",
    }
    put(tmp_path, "ImageSets/Main/val.txt", data=b"a\n")
    with pytest.raises(CollectionError, match=r"a is in (train and in val|val and in train); mend the sets"):
        scan("voc", tmp_path)


def test_pictures_without_xml_and_label_maps_are_options(
    tmp_path: Path, put: Callable, scan: Callable
) -> None:
    put(tmp_path, "JPEGImages/a.jpg", "JPEGImages/b.jpg", "SegmentationClass/a.png")
    put(tmp_path, "Annotations/a.xml", data=xml())
    options = {"images": "JPEGImages", "masks": "SegmentationClass", "include_unlabelled": True}
    found = scan("voc", tmp_path, options=options).records
    assert found["JPEGImages/a.jpg"].mask == tmp_path / "SegmentationClass/a.png"
    assert found["JPEGImages/b.jpg"].mask is None
    assert set(scan("voc", tmp_path, options={"images": "JPEGImages"}).records) == {"JPEGImages/a.jpg"}
    with pytest.raises(CollectionError, match=r"no such folder \(options\.masks\)"):
        scan("voc", tmp_path, options={"masks": "Segmentation"})


BOMB = b'<!DOCTYPE a [<!ENTITY x "' + b"y" * 50 + b'">]><annotation><filename>&x;</filename></annotation>'


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"<annotation>", "cannot be read as XML"),
        (b"\xff\xfe\x00", "cannot be read as XML"),
        (b"", "cannot be read as XML"),
        (BOMB, "declares a DOCTYPE"),
        (b"<html></html>", "its root is <html>, expected <annotation>"),
        (xml(("a", (5, 1, 3, 2))), "negative size"),
        (xml(("a", ("x", 1, 3, 2))), "expected 4 numbers"),
        (xml(("", (1, 1, 3, 2))), "an object has no name"),
        (xml(extra="<object><name>a</name></object>"), "object a has no bndbox"),
    ],
)
def test_an_xml_that_cannot_be_used_is_refused_alone(
    tmp_path: Path, put: Callable, scan: Callable, data: bytes, reason: str
) -> None:
    put(tmp_path, "a.jpg", "b.jpg")
    put(tmp_path, "a.xml", data=data)
    put(tmp_path, "b.xml", data=xml())
    found = scan("voc", tmp_path)
    ((_, why),) = found.refused.items()
    assert reason in why
    assert list(found.records) == ["b.jpg"]


def test_a_folder_without_xml_stops_the_scan(tmp_path: Path, put: Callable, scan: Callable) -> None:
    put(tmp_path, "a.jpg")
    with pytest.raises(CollectionError, match="no XML below it; layout voc expects"):
        scan("voc", tmp_path)


def test_a_box_on_another_picture_is_refused_when_it_is_built(
    tmp_path: Path, put: Callable, stored: Callable
) -> None:
    for name, value in (("a", 30), ("b", 60)):
        Pillow.fromarray(np.full((20, 30), value, np.uint8)).save(tmp_path / f"{name}.png")
    put(tmp_path, "a.xml", data=xml(("cell", (1, 1, 30, 20))))
    put(tmp_path, "b.xml", data=xml(("cell", (100, 100, 200, 200))))
    with pytest.raises(AssertionError, match="reaches to"):
        stored("voc", tmp_path)


def test_the_real_blood_smears_have_the_boxes_that_their_table_counts(realdata: Path, scan: Callable) -> None:
    found = scan("voc", realdata / "blood_bccd", modality="microscopy")
    assert not found.refused
    for row in csv.DictReader((realdata / "blood_bccd/manifest.csv").open()):
        counts = Counter(shape.label for shape in found.records[row["file"]].shapes)
        assert [counts["RBC"], counts["WBC"], counts["Platelets"]] == [
            int(row["n_rbc"]), int(row["n_wbc"]), int(row["n_platelets"]),
        ]  # fmt: skip
