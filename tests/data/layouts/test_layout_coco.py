"""data/layouts/coco.py: pictures, boxes, outlines, run lengths and key points out of one JSON."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medloom.data.collection import SourceConfig, source_of_config
from medloom.data.errors import CollectionError, ConfigError
from PIL import Image as Pillow

RNG = np.random.default_rng(0)
CATEGORIES = [{"id": 1, "name": "polyp"}, {"id": 7, "name": "tool", "keypoints": ["tip", "joint"]}]


def write(
    path: Path, images: list[Any], annotations: list[Any], categories: Any = CATEGORIES, **other: Any
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"images": images, "annotations": annotations, "categories": categories, **other}
    path.write_text(json.dumps(facts))


def image(number: int, name: str, **other: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name, "width": 20, "height": 10, **other}


def on(number: int, category: int = 1, **other: Any) -> dict[str, Any]:
    return {"id": 1000 + number, "image_id": number, "category_id": category, **other}


def shapes_of(tmp_path: Path, put: Callable, scan: Callable, *entries: dict[str, Any], **keys: Any) -> tuple:
    put(tmp_path, "a.png")
    write(tmp_path / "all.json", [image(1, "a.png")], list(entries))
    return scan("coco", tmp_path, **keys).only.shapes


def test_a_box_is_edges_and_an_outline_is_points(tmp_path: Path, put: Callable, scan: Callable) -> None:
    entry = on(1, bbox=[2, 3, 4.5, 5], segmentation=[[2, 3, 6.5, 3, 6.5, 8], [0, 0, 1, 0, 1, 1]])
    box, first, second = shapes_of(tmp_path, put, scan, entry, on(1, bbox=[0, 0, 1, 1]))[:3]
    assert (box.kind, box.label, box.points) == ("box", "polyp", ((3.0, 2.0), (8.0, 6.5)))
    assert (first.kind, first.points) == ("polygon", ((3.0, 2.0), (3.0, 6.5), (8.0, 6.5)))
    assert box.group == first.group == second.group == 0


def test_run_lengths_become_the_same_pixels(tmp_path: Path, put: Callable, stored: Callable) -> None:
    mask = RNG.random((10, 20)) < 0.6
    flat = mask.T.ravel()
    runs, value, count = [], False, 0
    for pixel in flat:
        if pixel != value:
            runs.append(count)
            value, count = pixel, 0
        count += 1
    entry = on(1, 7, segmentation={"size": [10, 20], "counts": [*runs, count]}, iscrowd=1)
    Pillow.fromarray(RNG.integers(0, 255, (10, 20)).astype(np.uint8)).save(tmp_path / "a.png")
    write(tmp_path / "all.json", [image(1, "a.png")], [entry])
    (sample,) = stored("coco", tmp_path, masks_from="polygons")
    np.testing.assert_array_equal(sample.mask, 7 * mask)
    assert sample.meta["mask"]["classes"] == {"1": "polyp", "7": "tool"}
    assert {shape["kind"] for shape in sample.meta["shapes"]} == {"polygon"}


def test_key_points_that_are_marked_are_landmarks(tmp_path: Path, put: Callable, scan: Callable) -> None:
    shapes = shapes_of(tmp_path, put, scan, on(1, 7, keypoints=[4, 5, 2, 0, 0, 0]))
    assert [(shape.kind, shape.label, shape.points) for shape in shapes] == [("point", "tip", ((5.0, 4.0),))]


def test_kinds_of_shapes_can_be_chosen(tmp_path: Path, put: Callable, scan: Callable) -> None:
    entry = on(1, bbox=[2, 3, 4, 5], segmentation=[[2, 3, 6, 3, 6, 8]])
    (shape,) = shapes_of(tmp_path, put, scan, entry, options={"shapes": ["box"]})
    assert shape.kind == "box"
    with pytest.raises(ConfigError, match="unknown kind 'boxes'; did you mean box"):
        scan("coco", tmp_path, options={"shapes": ["boxes"]})


def test_what_marks_nothing_is_left_out_and_counted(
    tmp_path: Path, put: Callable, scan: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert (
            shapes_of(tmp_path, put, scan, on(1, bbox=[2, 3, 0, 5]), on(1, segmentation=[[1, 1, 2, 2]])) == ()
        )
    assert "1 boxes of no size, 1 outlines of fewer than three points" in caplog.text


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (on(1, bbox=[5, 5, -3, 2]), "negative size"),
        (on(1, bbox=[5, 5, 3]), "expected 4 numbers"),
        (on(1, bbox=[5, 5, float("nan"), 3]), "expected 4 numbers"),
        (on(1, 2, bbox=[1, 1, 1, 1]), "category 2 is not among"),
        (on(1, segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "expected pairs"),
        (on(1, segmentation={"size": [10, 20], "counts": [5]}), "run lengths for 5 pixels, expected 10 x 20"),
        (on(1, segmentation={"size": [20, 10], "counts": [200]}), "are 20 x 10, its image 10 x 20"),
        (on(1, segmentation="x"), "expected outlines or run lengths"),
        (on(1, 7, keypoints=[1, 2, 2]), "expected 6 numbers"),
    ],
)
def test_a_contradiction_refuses_its_picture_alone(
    tmp_path: Path, put: Callable, scan: Callable, entry: dict[str, Any], reason: str
) -> None:
    put(tmp_path, "a.png", "b.png")
    write(tmp_path / "all.json", [image(1, "a.png"), image(2, "b.png")], [entry])
    found = scan("coco", tmp_path)
    assert reason in found.refused["a.png"]
    assert list(found.records) == ["b.png"]


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (("images/train/a.png", "images/val/a.png"), "a.png"),
        (("train2017/a.png", "val2017/a.png"), "a.png"),
        (("elsewhere/deep/a.png",), "C:\\users\\me\\a.png"),
        (("annotations/a.png",), "./a.png"),
        (("images/a.png",), "/data/x/images/a.png"),
    ],
)
def test_pictures_are_found_where_people_put_them(
    tmp_path: Path, put: Callable, scan: Callable, files: tuple[str, ...], text: str
) -> None:
    put(tmp_path, *files)
    write(tmp_path / "annotations/instances_train2017.json", [image(1, text)], [])
    record = scan("coco", tmp_path).only
    assert (record.name, record.split) == (files[0], "train")


def test_a_name_that_several_pictures_have_is_refused_and_can_be_settled(
    tmp_path: Path, put: Callable, scan: Callable
) -> None:
    put(tmp_path, "x/a.png", "y/a.png")
    write(tmp_path / "all.json", [image(1, "a.png"), image(2, "gone.png"), {"id": 3}], [])
    reasons = list(scan("coco", tmp_path).refused.values())
    assert reasons[0] == "picture a.png: could be x/a.png or y/a.png; set options.images"
    assert reasons[1].startswith("picture gone.png: none of this name below")
    assert "has no file_name" in reasons[2]
    assert "x/a.png" in scan("coco", tmp_path, options={"images": "x"}).records


def test_splits_come_from_the_files_names_or_the_options(
    tmp_path: Path, put: Callable, scan: Callable
) -> None:
    put(tmp_path, "train/a.png", "valid/b.png", "c.png")
    write(tmp_path / "train/_annotations.coco.json", [image(1, "a.png")], [])
    write(tmp_path / "valid/_annotations.coco.json", [image(1, "b.png")], [])
    write(tmp_path / "rest.json", [image(1, "c.png")], [])
    found = scan("coco", tmp_path, options={"splits": {"rest.json": "test"}})
    assert {r.name: r.split for r in found.records.values()} == {
        "train/a.png": "train",
        "valid/b.png": "val",
        "c.png": "test",
    }
    with pytest.raises(ConfigError, match="unknown split 'tset'"):
        scan("coco", tmp_path, options={"splits": {"rest.json": "tset"}})


def test_a_picture_in_two_files_stops_the_scan(tmp_path: Path, put: Callable, scan: Callable) -> None:
    put(tmp_path, "a.png")
    for name in ("instances", "keypoints"):
        write(tmp_path / f"{name}.json", [image(1, "a.png")], [])
    with pytest.raises(CollectionError, match=r"lists a\.png, as instances\.json does; name one"):
        scan("coco", tmp_path)
    assert scan("coco", tmp_path, options={"annotations": ["inst*.json"]}).only
    with pytest.raises(CollectionError, match=r"no such file \(options\.annotations\)"):
        scan("coco", tmp_path, options={"annotations": ["gone.json"]})


def test_the_names_of_mask_values_are_the_categories(tmp_path: Path, put: Callable) -> None:
    put(tmp_path, "a.png")
    config = SourceConfig(dataset="d", layout="coco", root=str(tmp_path))
    write(tmp_path / "train.json", [image(1, "a.png")], [])
    assert source_of_config(config, Path("/"), "s").mask_classes == {1: "polyp", 7: "tool"}
    write(tmp_path / "train.json", [], [], [{"id": 0, "name": "a"}, {"id": 5, "name": "b"}])
    assert source_of_config(config, Path("/"), "s").mask_classes == {1: "a", 2: "b"}
    write(tmp_path / "val.json", [], [], [{"id": 0, "name": "c"}])
    with pytest.raises(CollectionError, match="category 0 is c, in another file a"):
        source_of_config(config, Path("/"), "s")


def test_other_json_is_left_alone_and_none_at_all_stops_the_scan(
    tmp_path: Path, put: Callable, scan: Callable
) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "info.json").write_text('{"version": 1}')
    with pytest.raises(CollectionError, match="no JSON with `images` and `annotations`"):
        scan("coco", tmp_path)
    write(tmp_path / "all.json", [image(1, "a.png")], [on(9, bbox=[1, 1, 1, 1])])
    with pytest.raises(CollectionError, match="is of no image that is listed"):
        scan("coco", tmp_path)
    (tmp_path / "all.json").write_text('{"images": [], "annotations": [')
    with pytest.raises(CollectionError, match=r"all\.json: cannot be read as JSON"):
        scan("coco", tmp_path)


def test_boxes_reach_the_shards(tmp_path: Path, stored: Callable) -> None:
    Pillow.fromarray(RNG.integers(0, 255, (10, 20, 3)).astype(np.uint8)).save(tmp_path / "a.png")
    write(tmp_path / "all.json", [image(1, "a.png")], [on(1, bbox=[2, 3, 4, 5])])
    (sample,) = stored("coco", tmp_path, modality="endoscopy")
    (shape,) = sample.meta["shapes"]
    assert (shape["kind"], shape["label"], shape["points"]) == ("box", "polyp", [[3.0, 2.0], [8.0, 6.0]])


def test_real_nuclei_as_run_lengths_draw_the_same_label_map(
    realdata: Path, tmp_path: Path, stored: Callable
) -> None:
    """Every nucleus of an instance map is an annotation of its own; drawn again they are the map, not 0."""
    root = realdata / "micro_nuclei_dsb2018"
    rows = [row for row in csv.DictReader((root / "manifest.csv").open()) if row["mask"]][:4]
    images, annotations, expected = [], [], []
    for number, row in enumerate(rows):
        (tmp_path / f"{number}.png").symlink_to(root / row["file"])
        instances = np.asarray(Pillow.open(root / row["mask"]))
        expected.append(instances > 0)
        images.append(image(number, f"{number}.png", height=instances.shape[0], width=instances.shape[1]))
        for nucleus in np.unique(instances[instances > 0]).tolist():
            flat = np.r_[False, (instances == nucleus).T.ravel(), False].astype(int)
            edges = np.flatnonzero(np.diff(flat))
            counts = np.diff(np.r_[0, edges, instances.size]).tolist()
            size = list(instances.shape)
            annotations.append(on(number, segmentation={"size": size, "counts": counts}, iscrowd=1))
    write(tmp_path / "all.json", images, annotations, [{"id": 1, "name": "nucleus"}])
    samples = stored("coco", tmp_path, modality="microscopy", masks_from="polygons")
    assert len(samples) == 4
    for sample, mask in zip(samples, expected, strict=True):
        np.testing.assert_array_equal(sample.mask, mask)
