"""Annotation files with anything in any place: a scan refuses in its own words or goes on, it never fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from medloom.data.errors import MedloomError
from PIL import Image as Pillow

JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), st.text(max_size=8),
    st.just([]), st.just({}), st.just([[]]), st.just([None, {"a": 1}]), st.lists(st.floats(), max_size=7),
    st.just("../" * 9 + "etc/passwd"), st.just("\0"), st.just("x" * 300),
)  # fmt: skip

SHAPE = {"label": "a", "shape_type": "polygon", "points": [[1, 2], [3, 4], [5, 1]], "group_id": 1}
DOCUMENTS: dict[str, tuple[str, Any]] = {
    "coco": (
        "all.json",
        {
            "images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 8}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "keypoints": [1, 2, 2],
                 "segmentation": [[1, 2, 3, 4, 5, 1]]},
                {"id": 2, "image_id": 1, "category_id": 1,
                 "segmentation": {"size": [8, 9], "counts": [9, 63]}},
                {"id": 3, "image_id": 1, "category_id": 1, "segmentation": {"size": [8, 9], "counts": "0X2"}},
            ],
            "categories": [{"id": 1, "name": "a", "keypoints": ["tip"]}],
        },
    ),
    "labelme": (
        "a.json",
        {
            "imagePath": "a.png", "flags": {"x": True}, "imageData": None,
            "shapes": [SHAPE, SHAPE | {"shape_type": "circle", "points": [[1, 2], [3, 4]]},
                       SHAPE | {"shape_type": "mask", "points": [[1, 2], [3, 4]], "mask": "AAAA"}],
        },
    ),
    "nnunet_raw": (
        "dataset.json",
        {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz",
         "numTraining": 1, "dataset":
         {"x": {"images": ["imagesTr/x_0000.nii.gz"], "label": "labelsTr/x.nii.gz"}}},
    ),
    "msd": (
        "dataset.json",
        {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "a"}, "test": ["./imagesTs/y.nii.gz"],
         "training": [{"image": "./imagesTr/x_0000.nii.gz", "label": "./labelsTr/x.nii.gz"}]},
    ),
    "yolo": ("data.yaml", {"names": ["a"], "train": "images/train", "path": ".", "val": ["x"]}),
    "bids": ("dataset_description.json", {"Name": "x", "License": "CC0"}),
}  # fmt: skip


def places(document: Any, above: tuple = ()) -> Iterator[tuple]:
    yield above
    inner = enumerate(document) if isinstance(document, list) else ()
    for key, value in document.items() if isinstance(document, dict) else inner:
        yield from places(value, (*above, key))


def changed(document: Any, place: tuple, value: Any) -> Any:
    """A copy with `value` at `place`; what is no key there is left alone."""
    if not place:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[place[0]] = changed(copy[place[0]], place[1:], value)
    return copy


@pytest.fixture
def around(tmp_path: Path, put: Callable) -> Path:
    put(
        tmp_path,
        "imagesTr/x_0000.nii.gz",
        "labelsTr/x.nii.gz",
        "imagesTs/y.nii.gz",
        "sub-1/anat/sub-1_T1w.nii.gz",
    )
    Pillow.new("L", (9, 8)).save(tmp_path / "a.png")
    put(tmp_path, "a.txt", data=b"0 0.5 0.5 0.1 0.1\n")
    return tmp_path


@pytest.mark.parametrize("layout", sorted(DOCUMENTS))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_json_with_junk_in_any_place(
    layout: str, around: Path, scan: Callable, data: st.DataObject
) -> None:
    file, document = DOCUMENTS[layout]
    place = data.draw(st.sampled_from(list(places(document))))
    text = json.dumps(changed(document, place, data.draw(JUNK)))
    (around / file).write_text(text)
    with suppress(MedloomError):
        scan(layout, around, options={"flags": True} if layout == "labelme" else {})


@pytest.mark.parametrize(
    ("layout", "file", "sound"),
    [
        (
            "voc",
            "a.xml",
            b"<annotation><object><name>a</name><bndbox><xmin>1</xmin></bndbox></object></annotation>",
        ),
        ("yolo", "a.txt", b"0 0.5 0.5 0.1 0.1\n0 0 0 1 0 1 1\n"),
        ("bids", "participants.tsv", b"participant_id\tage\tsex\nsub-1\t61\tF\n"),
        ("coco", "all.json", json.dumps(DOCUMENTS["coco"][1]).encode()),
    ],
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_text_with_junk_in_any_place(
    layout: str, file: str, sound: bytes, around: Path, scan: Callable, data: st.DataObject
) -> None:
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(sound))] * 2)))
    (around / file).write_bytes(sound[:start] + data.draw(st.binary(max_size=8)) + sound[stop:])
    with suppress(MedloomError):
        scan(layout, around, options={"names": ["a"]} if layout == "yolo" else {})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_npz_with_a_byte_changed(tmp_path: Path, scan: Callable, data: st.DataObject) -> None:
    import numpy as np

    arrays = {f"{split}_images": np.zeros((2, 5, 5), np.uint8) for split in ("train", "val", "test")}
    arrays |= {f"{split}_labels": np.zeros((2, 1), np.uint8) for split in ("train", "val", "test")}
    np.savez_compressed(tmp_path / "pathmnist.npz", **arrays)
    sound = bytearray((tmp_path / "pathmnist.npz").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        sound[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "pathmnist.npz").write_bytes(sound)
    with suppress(MedloomError):
        scan("medmnist", tmp_path)
