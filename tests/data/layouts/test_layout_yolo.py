"""data/layouts/yolo.py: shares of a picture's sides become pixels, found as Ultralytics does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from medloom.data.errors import CollectionError
from medloom.data.layouts.yolo import displayed_size
from medloom.data.readers import read
from PIL import Image as Pillow
from PIL import ImageFile

RNG = np.random.default_rng(0)
NAMES = {"names": ["polyp", "tool"]}


def picture(path: Path, width: int = 40, height: int = 20, turn: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Pillow.fromarray(RNG.integers(0, 255, (height, width, 3)).astype(np.uint8))
    exif = Pillow.Exif()
    exif[0x0112] = turn
    made.save(path, exif=exif)


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("images/train/a.jpg", "labels/train/a.txt"),
        ("train/images/a.jpg", "train/labels/a.txt"),
        ("images/x/images/a.jpg", "images/x/labels/a.txt"),
        ("a.jpg", "a.txt"),
        ("images/a.b.jpg", "labels/a.b.txt"),
    ],
)
def test_boxes_are_found_and_become_pixels(
    tmp_path: Path, put: Callable, scan: Callable, image: str, labels: str
) -> None:
    picture(tmp_path / image)
    put(tmp_path, labels, data=b"1 0.5 0.5 0.25 0.5\n\n0 0 0 0.1 0.1\n")
    first, second = scan("yolo", tmp_path, options=NAMES).only.shapes
    assert (first.kind, first.label, first.points) == ("box", "tool", ((5.0, 15.0), (15.0, 25.0)))
    assert second.label == "polyp"


def test_outlines_have_pairs_of_corners(tmp_path: Path, put: Callable, scan: Callable) -> None:
    picture(tmp_path / "a.jpg")
    put(tmp_path, "a.txt", data=b"0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (shape,) = scan("yolo", tmp_path, options=NAMES).only.shapes
    assert shape.kind == "polygon"
    np.testing.assert_allclose(shape.points, [(2, 4), (2, 20), (10, 20)])


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_shares_are_of_the_picture_as_displayed(
    tmp_path: Path, put: Callable, scan: Callable, turn: int, suffix: str
) -> None:
    picture(tmp_path / f"a.{suffix}", turn=turn)
    (image,) = read([tmp_path / f"a.{suffix}"])
    assert displayed_size(tmp_path / f"a.{suffix}") == image.array.shape[1:]
    put(tmp_path, "a.txt", data=b"0 0.5 0.5 1 1\n")
    (shape,) = scan("yolo", tmp_path, options=NAMES).only.shapes
    assert shape.points == ((0.0, 0.0), tuple(map(float, image.array.shape[1:])))


def test_a_picture_without_text_shows_nothing(tmp_path: Path, put: Callable, scan: Callable) -> None:
    picture(tmp_path / "images/a.jpg")
    put(tmp_path, "images/b.jpg")  # never opened
    put(tmp_path, "labels/a.txt", data=b"")
    found = scan("yolo", tmp_path, options=NAMES)
    assert [record.shapes for record in found.records.values()] == [(), ()]


def test_names_and_splits_come_from_the_yaml(tmp_path: Path, put: Callable, scan: Callable) -> None:
    for name in ("one/images/a.jpg", "two/images/b.jpg", "test/images/c.jpg"):
        picture(tmp_path / name)
        put(tmp_path, name.replace("images", "labels").replace("jpg", "txt"), data=b"3 0.5 0.5 0.1 0.1")
    text = "train: ../one/images\nval: [two]\nnames: {0: a, 3: d}\n"
    put(tmp_path, "data.yaml", data=text.encode())
    found = scan("yolo", tmp_path).records
    assert {name[-5]: record.split for name, record in found.items()} == {
        "a": "train",
        "b": "val",
        "c": "test",
    }
    assert {shape.label for record in found.values() for shape in record.shapes} == {"d"}
    put(tmp_path, "other.yaml", data=b"names: [x]")
    with pytest.raises(CollectionError, match=r"name the classes differently; set options\.names"):
        scan("yolo", tmp_path)


def test_names_come_from_a_text_file_too(tmp_path: Path, put: Callable, scan: Callable) -> None:
    picture(tmp_path / "a.jpg")
    put(tmp_path, "a.txt", data=b"1 0.5 0.5 0.1 0.1")
    with pytest.raises(CollectionError, match="no names of the classes"):
        scan("yolo", tmp_path)
    put(tmp_path, "classes.txt", data=b"x\ny\n")
    assert scan("yolo", tmp_path).only.shapes[0].label == "y"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"2 0.5 0.5 0.1 0.1", "a.txt line 1: class '2', expected one of 0 to 1"),
        (b"polyp 0.5 0.5 0.1 0.1", "class 'polyp'"),
        (b"0 0.5 0.5 0.1 0.1 0.9", "line 1: 5 numbers, expected x y width height"),
        (b"0 0.5 0.5 nan 0.1", "expected numbers"),
        (b"0 0.5 0.5 -0.1 0.1", "negative size"),
        (b"\xff\xfe0", "cannot be read as text"),
    ],
)
def test_a_wrong_line_refuses_its_picture_alone(
    tmp_path: Path, put: Callable, scan: Callable, line: bytes, reason: str
) -> None:
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "b.jpg")
    put(tmp_path, "a.txt", data=line)
    found = scan("yolo", tmp_path, options=NAMES)
    assert reason in found.refused["a.jpg"]
    assert list(found.records) == ["b.jpg"]


def test_a_picture_whose_header_is_broken_is_refused(tmp_path: Path, put: Callable, scan: Callable) -> None:
    put(tmp_path, "a.jpg")
    put(tmp_path, "a.txt", data=b"0 0.5 0.5 0.1 0.1")
    assert "its header cannot be read" in scan("yolo", tmp_path, options=NAMES).refused["a.jpg"]


def test_pictures_without_any_text_stop_the_scan(tmp_path: Path, put: Callable, scan: Callable) -> None:
    put(tmp_path, "images/a.jpg")
    with pytest.raises(CollectionError, match="no picture has a text file; layout yolo expects"):
        scan("yolo", tmp_path, options=NAMES)


def test_the_real_blood_smears_are_the_same_in_yolo(
    realdata: Path, tmp_path: Path, put: Callable, scan: Callable
) -> None:
    names = ["RBC", "WBC", "Platelets"]
    voc = list(scan("voc", realdata / "blood_bccd").records.values())[:20]
    for record in voc:
        path = record.paths[0]
        height, width = displayed_size(path)
        lines = []
        for shape in record.shapes:
            (top, left), (bottom, right) = shape.points
            box = (
                (left + right) / 2 / width,
                (top + bottom) / 2 / height,
                (right - left) / width,
                (bottom - top) / height,
            )
            lines.append(f"{names.index(shape.label)} " + " ".join(map(str, box)))
        put(tmp_path, f"labels/{path.stem}.txt", data="\n".join(lines).encode())
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / path.name).symlink_to(path)
    found = scan("yolo", tmp_path, options={"names": names}).records
    for record in voc:
        mine = found[f"images/{record.paths[0].name}"].shapes
        assert [shape.label for shape in mine] == [shape.label for shape in record.shapes]
        for a, b in zip(mine, record.shapes, strict=True):
            np.testing.assert_allclose(a.points, b.points, atol=1e-9)


def test_a_turn_that_stands_behind_the_pixels_of_a_png_is_found_without_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "a.png", turn=6)
    data = (tmp_path / "a.png").read_bytes()
    at = data.index(b"eXIf") - 4
    chunk = data[at : at + 12 + int.from_bytes(data[at : at + 4], "big")]
    rest = data.replace(chunk, b"")
    (tmp_path / "a.png").write_bytes(rest[:-12] + chunk + rest[-12:])
    (image,) = read([tmp_path / "a.png"])
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels were decoded"))
    assert displayed_size(tmp_path / "a.png") == image.array.shape[1:] == (40, 20)
