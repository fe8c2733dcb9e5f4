"""data/layouts/labelme.py: every kind of shape of LabelMe, and JSON that is not as expected."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medloom.data.errors import CollectionError
from PIL import Image as Pillow

RNG = np.random.default_rng(0)


def say(root: Path, *shapes: dict[str, Any], name: str = "a", **other: Any) -> None:
    said = {
        "version": "5.4.1",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": f"{name}.png",
        "imageData": None,
    }
    (root / f"{name}.json").write_text(json.dumps(said | other))


def shape(kind: str, *points: tuple[float, float], label: str = "nodule", **other: Any) -> dict[str, Any]:
    return {"label": label, "shape_type": kind, "points": points, "group_id": None, **other}


@pytest.fixture
def folder(tmp_path: Path, put: Callable) -> Path:
    put(tmp_path, "a.png")
    return tmp_path


def test_outlines_rectangles_and_points(folder: Path, scan: Callable) -> None:
    say(
        folder,
        shape("polygon", (1, 2), (5, 2), (5, 6), group_id=3),
        shape("rectangle", (9, 8), (4, 2)),
        shape("point", (7, 1)),
    )
    outline, box, point = scan("labelme", folder).only.shapes
    assert (outline.kind, outline.points, outline.group) == (
        "polygon",
        ((2.0, 1.0), (2.0, 5.0), (6.0, 5.0)),
        3,
    )
    assert (box.kind, box.points, box.group) == ("box", ((2.0, 4.0), (8.0, 9.0)), None)
    assert (point.kind, point.points) == ("point", ((1.0, 7.0),))


def test_a_circle_is_an_outline_of_its_area(folder: Path, scan: Callable) -> None:
    say(folder, shape("circle", (10, 20), (13, 24)))
    (circle,) = scan("labelme", folder).only.shapes
    y, x = np.array(circle.points).T
    np.testing.assert_allclose(np.hypot(y - 20, x - 10), 5)
    area = abs(np.dot(y, np.roll(x, -1)) - np.dot(x, np.roll(y, -1))) / 2
    assert 0.99 * np.pi * 25 < area < np.pi * 25


def test_a_mask_becomes_the_same_pixels(tmp_path: Path, stored: Callable) -> None:
    mask = RNG.random((6, 8)) < 0.6
    mask[0, 0] = True
    png = io.BytesIO()
    Pillow.fromarray(mask).save(png, "PNG")
    Pillow.fromarray(RNG.integers(0, 255, (20, 30)).astype(np.uint8)).save(tmp_path / "a.png")
    text = base64.b64encode(png.getvalue()).decode()
    say(
        tmp_path,
        shape("mask", (4, 3), (11, 8), mask=text),
        shape("polygon", (20, 1), (25, 1), (25, 5), group_id=0),
    )
    (sample,) = stored("labelme", tmp_path, masks_from="polygons", mask_classes={1: "nodule"})
    expected = np.zeros((20, 30), bool)
    expected[3:9, 4:12] = mask
    np.testing.assert_array_equal(sample.mask[:, :15], expected[:, :15])
    assert sample.mask[:, 15:].any()


def test_lines_are_left_out_and_counted(
    folder: Path, scan: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    say(folder, shape("line", (1, 1), (2, 2)), shape("linestrip", (1, 1), (2, 2), (3, 1)))
    with caplog.at_level(logging.WARNING):
        assert scan("labelme", folder).only.shapes == ()
    assert "2 lines" in caplog.text


def test_flags_become_labels_when_asked(folder: Path, scan: Callable) -> None:
    say(folder, flags={"blurred": True, "benign": False})
    assert scan("labelme", folder).only.labels == {}
    assert scan("labelme", folder, options={"flags": True}).only.labels == {"blurred": True, "benign": False}


def test_the_picture_is_the_one_named_or_the_one_beside(folder: Path, scan: Callable, put: Callable) -> None:
    put(folder, "pictures/b.png", "c.jpg")
    say(folder, name="x", imagePath="..\\pictures\\b.png")
    say(folder, name="c", imagePath="renamed.png")
    say(folder, name="d", imagePath="d.png", imageData="AAAA")
    found = scan("labelme", folder, options={"include_unlabelled": True})
    assert set(found.records) == {"pictures/b.png", "c.jpg", "a.png"}
    assert found.refused["d.json"].endswith("it is only inside the JSON, labelme_export_json takes it out")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (shape("polygon", (1, 2), label=""), "shape 0 has no label"),
        ({"label": "a"}, "polygon a has no points"),
        (shape("rectangle", (1, 2)), "rectangle nodule has 1 points, expected 2"),
        ({**shape("polygon"), "points": [[1, "x"]]}, "point of polygon nodule"),
        (shape("ellipse", (1, 2)), "unknown shape_type 'ellipse'"),
        (shape("mask", (1, 1), (2, 2), mask="@@"), "mask nodule: no PNG"),
        (shape("mask", (1, 1), (2, 2), mask="AAAA"), "mask nodule: no PNG"),
    ],
)
def test_a_shape_that_cannot_be_used_refuses_its_picture_alone(
    folder: Path, scan: Callable, put: Callable, entry: dict[str, Any], reason: str
) -> None:
    put(folder, "b.png")
    say(folder, entry)
    say(folder, name="b")
    found = scan("labelme", folder)
    assert reason in found.refused["a.png"]
    assert list(found.records) == ["b.png"]


def test_other_json_is_left_alone_and_none_at_all_stops_the_scan(
    folder: Path, scan: Callable, put: Callable
) -> None:
    put(folder, "dataset.json", data=b'{"name": "x"}')
    with pytest.raises(CollectionError, match="no JSON with `shapes` and `imagePath`"):
        scan("labelme", folder)
    say(folder)
    put(folder, "broken.json", data=b"{")
    found = scan("labelme", folder)
    assert list(found.records) == ["a.png"]
    assert found.refused["broken.json"].startswith("broken.json: cannot be read as JSON")
