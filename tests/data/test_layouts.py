"""data/layouts: trees and tables become Records. The files hold junk: a layout never opens pixels."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
from medloom.data.config import structured
from medloom.data.errors import CollectionError, ConfigError
from medloom.data.layouts import LAYOUTS, Refusal, Source
from medloom.data.layouts.base import has_suffix, parse_split, stem_of, walk
from medloom.data.sample import Modality, Organ, Record


def put(root: Path, *names: str, data: bytes = b"junk") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def scan(layout: str, root: Path, **keys: Any) -> list[Record | Refusal]:
    options = structured(LAYOUTS[layout].Options, keys.pop("options", {}), where="options")
    source = Source(dataset="d", layout=layout, root=root, options=options, **keys)
    source = LAYOUTS[layout].describe(source)
    return list(LAYOUTS[layout].scan(root, source, options))


def records(items: list[Record | Refusal]) -> dict[str, Record]:
    assert not [item for item in items if isinstance(item, Refusal)]
    return {item.name: item for item in items if isinstance(item, Record)}


def refusals(items: list[Record | Refusal]) -> dict[str, str]:
    return {item.name: item.reason for item in items if isinstance(item, Refusal)}


# ---- the contract of every layout


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_layout_has_options_that_are_a_dataclass_with_defaults(name: str) -> None:
    assert dataclasses.is_dataclass(LAYOUTS[name].Options)
    assert LAYOUTS[name].Options() == structured(LAYOUTS[name].Options, {}, where="options")


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_wrong_option_is_named_with_its_neighbours(name: str) -> None:
    first = dataclasses.fields(LAYOUTS[name].Options)[0].name
    with pytest.raises(ConfigError, match=f"did you mean.*{first}"):
        structured(LAYOUTS[name].Options, {first + "x": 1}, where="options")


# ---- walking


def test_walk_is_sorted_and_leaves_litter_out(tmp_path: Path) -> None:
    names = ["b/2.png", "b/1.png", "a/z/q.png", "a/1.png", "top.png"]
    random.Random(0).shuffle(names)
    put(tmp_path, *names, ".hidden/x.png", "a/._1.png", "__MACOSX/a/1.png", "a/Thumbs.db")
    assert [name for name, _ in walk(tmp_path)] == ["top.png", "a/1.png", "a/z/q.png", "b/1.png", "b/2.png"]


def test_walk_follows_links_once_and_ends_in_loops(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "x.png")
    put(tmp_path / "root", "a/1.png")
    (tmp_path / "root/a/loop").symlink_to(tmp_path / "root")
    (tmp_path / "root/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/broken.png").symlink_to(tmp_path / "nowhere.png")
    assert [name for name, _ in walk(tmp_path / "root")] == ["a/1.png", "linked/x.png"]


@pytest.mark.parametrize(
    ("name", "stem"), [("a/b.nii.gz", "b"), ("x.NII.GZ", "x"), ("a.b.png", "a.b"), ("plain", "plain")]
)
def test_stems_know_double_suffixes(name: str, stem: str) -> None:
    assert stem_of(name) == stem


def test_suffixes_match_in_any_case() -> None:
    assert has_suffix("A.PNG", (".png",))
    assert not has_suffix("png", (".png",))


def test_splits_have_synonyms_and_near_names() -> None:
    assert [parse_split(word) for word in ("Training", "valid", "TEST", " dev ")] == [
        "train",
        "val",
        "test",
        "val",
    ]
    with pytest.raises(CollectionError, match="did you mean train"):
        parse_split("trian")


# ---- image_folder


def test_folders_are_classes_however_deep(tmp_path: Path) -> None:
    put(tmp_path, "benign/1.png", "benign/sub/2.JPG", "malignant/1.png", "loose.tif", "benign/notes.txt")
    found = records(scan("image_folder", tmp_path, modality=Modality.ULTRASOUND, licence="CC0-1.0"))
    assert {name: record.labels for name, record in found.items()} == {
        "benign/1.png": {"class": "benign"},
        "benign/sub/2.JPG": {"class": "benign"},
        "malignant/1.png": {"class": "malignant"},
        "loose.tif": {},
    }
    record = found["benign/1.png"]
    assert record.paths == (tmp_path / "benign/1.png",)
    assert (record.modality, record.licence, record.split) == (Modality.ULTRASOUND, "CC0-1.0", None)


def test_the_same_file_name_in_two_classes_is_two_subjects(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/1.png")
    assert len({record.subject for record in records(scan("image_folder", tmp_path)).values()}) == 2


def test_split_folders_and_subjects_from_the_path(tmp_path: Path) -> None:
    put(tmp_path, "train/a/p1_0.png", "train/a/p1_1.png", "valid/b/p2_0.png", "test/p3_0.png")
    options = {"split_folders": True, "subject_pattern": r"(p\d+)_"}
    found = records(scan("image_folder", tmp_path, options=options))
    assert {(r.subject, r.split, r.labels.get("class")) for r in found.values()} == {
        ("p1", "train", "a"),
        ("p2", "val", "b"),
        ("p3", "test", None),
    }


def test_a_first_level_folder_that_is_no_split_stops_the_scan(tmp_path: Path) -> None:
    put(tmp_path, "fold0/a/1.png")
    with pytest.raises(CollectionError, match=r"fold0: unknown split.*split_folders: false"):
        scan("image_folder", tmp_path, options={"split_folders": True})


def test_a_file_outside_the_split_folders_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "stray.png")
    assert set(refusals(scan("image_folder", tmp_path, options={"split_folders": True}))) == {"stray.png"}


def test_masks_are_paired_by_suffix_and_are_no_images(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "a/1_mask.png", "a/2.jpg", "b/1.jpg", "b/9_mask.png")
    found = records(scan("image_folder", tmp_path, options={"mask_suffix": "_mask"}))
    assert {name: record.mask for name, record in found.items()} == {
        "a/1.jpg": tmp_path / "a/1_mask.png",
        "a/2.jpg": None,
        "b/1.jpg": None,
    }


def test_an_image_with_two_masks_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "a/benign (4).png", "a/benign (4)_mask.png", "a/benign (4)_mask_1.png", "a/x.png")
    items = scan("image_folder", tmp_path, options={"mask_suffix": "_mask"})
    assert "2 masks" in refusals(items)["a/benign (4).png"]
    assert len(items) == 2


def test_volumes_lie_in_class_folders_too(tmp_path: Path) -> None:
    put(tmp_path, "a/1.nii.gz", "a/2.dcm")
    assert set(records(scan("image_folder", tmp_path))) == {"a/1.nii.gz", "a/2.dcm"}


def test_an_empty_file_and_an_unmatched_subject_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "a/p1.png")
    put(tmp_path, "a/p2.png", data=b"")
    put(tmp_path, "a/other.png")
    found = refusals(scan("image_folder", tmp_path, options={"subject_pattern": r"(p\d)"}))
    assert "0 bytes" in found["a/p2.png"]
    assert "does not match" in found["a/other.png"]


@pytest.mark.parametrize("pattern", ["p[", "p1", "(p)(1)"])
def test_a_subject_pattern_has_exactly_one_group(tmp_path: Path, pattern: str) -> None:
    put(tmp_path, "a/p1.png")
    with pytest.raises(ConfigError, match="subject_pattern"):
        scan("image_folder", tmp_path, options={"subject_pattern": pattern})


# ---- msd


def decathlon(root: Path, **facts: Any) -> None:
    put(
        root,
        "imagesTr/x_001.nii.gz",
        "imagesTr/x_002.nii.gz",
        "labelsTr/x_001.nii.gz",
        "labelsTr/x_002.nii.gz",
    )
    put(root, "imagesTs/x_003.nii.gz", "imagesTr/._x_001.nii.gz")
    entry = "./{}Tr/x_{}.nii.gz"
    whole = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "cancer"},
        "training": [
            {"image": entry.format("images", number), "label": entry.format("labels", number)}
            for number in ("001", "002")
        ],
        "test": ["./imagesTs/x_003.nii.gz"],
        **facts,
    }
    (root / "dataset.json").write_text(json.dumps(whole))


def test_the_decathlon_is_read_from_its_json(tmp_path: Path) -> None:
    decathlon(tmp_path)
    found = records(scan("msd", tmp_path, organ=Organ.LIVER))
    first = found["imagesTr/x_001.nii.gz"]
    assert first.mask == tmp_path / "labelsTr/x_001.nii.gz"
    assert (first.modality, first.organ, first.split) == (Modality.CT, Organ.LIVER, "train")
    last = found["imagesTs/x_003.nii.gz"]
    assert (last.split, last.mask) == ("test", None)
    assert set(records(scan("msd", tmp_path, options={"include_unlabelled": False}))) == set(found) - {
        last.name
    }


def test_the_decathlon_names_its_mask_values_unless_the_collection_does(tmp_path: Path) -> None:
    decathlon(tmp_path)
    source = Source(dataset="d", layout="msd", root=tmp_path)
    assert LAYOUTS["msd"].describe(source).mask_classes == {1: "liver", 2: "cancer"}
    own = dataclasses.replace(source, mask_classes={1: "organ"})
    assert LAYOUTS["msd"].describe(own).mask_classes == {1: "organ"}
    decathlon(tmp_path, labels={"background": 0, "liver": 1, "whole": [1, 2]})
    assert LAYOUTS["msd"].describe(source).mask_classes == {1: "liver"}


@pytest.mark.parametrize(
    ("channels", "modality"),
    [({"0": "MRI"}, "mri"), ({"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}, "mri"), ("ADC", "mri")],
)
def test_channels_of_one_modality_are_understood(tmp_path: Path, channels: Any, modality: str) -> None:
    decathlon(tmp_path, modality=channels)
    assert {record.modality for record in records(scan("msd", tmp_path)).values()} == {Modality(modality)}


@pytest.mark.parametrize("channels", [{"0": "CT", "1": "PET"}, {"0": "banana"}, {}])
def test_unclear_channels_ask_for_the_modality(tmp_path: Path, channels: Any) -> None:
    decathlon(tmp_path, modality=channels)
    with pytest.raises(CollectionError, match="state `modality` in source d"):
        scan("msd", tmp_path)
    assert len(scan("msd", tmp_path, modality=Modality.CT)) == 3


def test_missing_files_are_refused_one_by_one(tmp_path: Path) -> None:
    decathlon(tmp_path)
    (tmp_path / "imagesTs/x_003.nii.gz").unlink()
    (tmp_path / "labelsTr/x_002.nii.gz").unlink()
    found = refusals(scan("msd", tmp_path))
    assert found["imagesTs/x_003.nii.gz"] == "file is missing"
    assert found["imagesTr/x_002.nii.gz"] == "mask labelsTr/x_002.nii.gz: file is missing"


def test_apple_litter_that_the_json_lists_is_left_out(tmp_path: Path) -> None:
    decathlon(tmp_path, test=["./imagesTs/._x_003.nii.gz"])
    assert len(scan("msd", tmp_path)) == 2


@pytest.mark.parametrize("text", [None, "{", "[]", '{"training": 3}', '{"training": [{"label": "x"}]}'])
def test_a_broken_json_stops_the_scan(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(CollectionError, match=r"dataset\.json"):
        scan("msd", tmp_path, modality=Modality.CT, mask_classes={1: "x"})
