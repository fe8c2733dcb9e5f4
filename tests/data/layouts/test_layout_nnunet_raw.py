"""data/layouts/nnunet_raw.py: channels by number become one image; dataset.json of v1 and v2."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from medloom.data.collection import SourceConfig, source_of_config
from medloom.data.errors import CollectionError
from medloom.data.readers import read
from medloom.data.sample import Modality
from PIL import Image as Pillow

RNG = np.random.default_rng(0)
V2 = {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": {"background": 0, "edema": 1, "core": 2},
      "numTraining": 2, "file_ending": ".nii.gz"}  # fmt: skip


def volume(path: Path, dtype: type = np.int16, top: int = 200) -> np.ndarray:
    array = RNG.integers(0, top, (6, 7, 5)).astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return array.transpose(2, 1, 0)


@pytest.fixture
def raw(tmp_path: Path, put: Callable) -> Path:
    """Two training cases and one of test, two channels each; the files hold junk."""
    for case in ("imagesTr/brain_001", "imagesTr/brain_002", "imagesTs/brain_003"):
        put(tmp_path, f"{case}_0000.nii.gz", f"{case}_0001.nii.gz")
    put(tmp_path, "labelsTr/brain_001.nii.gz", "labelsTr/brain_002.nii.gz", "imagesTr/readme.txt")
    say(tmp_path)
    return tmp_path


def say(root: Path, **facts: Any) -> None:
    known = {key: value for key, value in (V2 | facts).items() if value is not None}
    (root / "dataset.json").write_text(json.dumps(known))


def test_a_case_is_one_record_of_its_channels(raw: Path, scan: Callable) -> None:
    found = scan("nnunet_raw", raw)
    assert not found.refused
    assert list(found.records) == ["imagesTr/brain_001", "imagesTr/brain_002", "imagesTs/brain_003"]
    record = found.records["imagesTr/brain_001"]
    assert [path.name for path in record.paths] == ["brain_001_0000.nii.gz", "brain_001_0001.nii.gz"]
    assert record.given is not None and record.given.channels == ("T1", "FLAIR")
    assert (record.subject, record.modality, record.split) == ("brain_001", Modality.MRI, "train")
    assert record.mask == raw / "labelsTr/brain_001.nii.gz"
    test = found.records["imagesTs/brain_003"]
    assert (test.split, test.mask) == ("test", None)
    assert len(scan("nnunet_raw", raw, options={"include_unlabelled": False}).records) == 2


def test_masks_of_the_test_cases_are_taken_where_they_are(raw: Path, scan: Callable, put: Callable) -> None:
    put(raw, "labelsTs/brain_003.nii.gz")
    assert scan("nnunet_raw", raw).records["imagesTs/brain_003"].mask == raw / "labelsTs/brain_003.nii.gz"


def test_names_of_the_labels_come_from_the_json(raw: Path) -> None:
    say(raw, labels={"background": 0, "whole": [1, 2], "core": 2, "ignore": 3})
    config = SourceConfig(dataset="d", layout="nnunet_raw", root=str(raw))
    assert source_of_config(config, Path("/"), "s").mask_classes == {2: "core", 3: "ignore"}


def test_version_one_of_the_json_and_one_channel(tmp_path: Path, scan: Callable, put: Callable) -> None:
    put(tmp_path, "imagesTr/liver_0_0000.nii.gz", "labelsTr/liver_0.nii.gz")
    first = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"}, "training": []}
    (tmp_path / "dataset.json").write_text(json.dumps(first))
    record = scan("nnunet_raw", tmp_path).only
    assert (record.name, record.modality, record.given) == ("imagesTr/liver_0", Modality.CT, None)


def test_cases_that_the_json_lists_may_lie_anywhere(tmp_path: Path, scan: Callable, put: Callable) -> None:
    put(tmp_path, "elsewhere/a.nii.gz", "elsewhere/b.nii.gz", "seg/a.nii.gz")
    case = {"images": ["elsewhere/a.nii.gz", "./elsewhere/b.nii.gz"], "label": "seg/a.nii.gz"}
    say(tmp_path, dataset={"one": case}, numTraining=1)
    record = scan("nnunet_raw", tmp_path).only
    assert record.paths == (tmp_path / "elsewhere/a.nii.gz", tmp_path / "elsewhere/b.nii.gz")
    assert record.mask == tmp_path / "seg/a.nii.gz"
    say(tmp_path, dataset={"one": {"label": "x"}})
    with pytest.raises(CollectionError, match="case 'one' of `dataset` lists no images"):
        scan("nnunet_raw", tmp_path)


def test_some_channels_alone_can_be_chosen(raw: Path, scan: Callable) -> None:
    say(raw, channel_names={"0": "CT", "1": "PET"})
    with pytest.raises(CollectionError, match=r"not one modality; state `modality`"):
        scan("nnunet_raw", raw)
    record = scan("nnunet_raw", raw, options={"channels": ["pet"]}).records["imagesTr/brain_001"]
    assert [path.name for path in record.paths] == ["brain_001_0001.nii.gz"]
    assert (record.modality, record.given) == (Modality.PET, None)
    with pytest.raises(CollectionError, match=r"no channel 'PTE' .*did you mean PET"):
        scan("nnunet_raw", raw, options={"channels": ["PTE"]})


def test_cases_that_are_not_whole_are_refused_alone(raw: Path, scan: Callable, put: Callable) -> None:
    (raw / "imagesTr/brain_001_0001.nii.gz").unlink()
    put(raw, "imagesTr/brain_002_0002.nii.gz", "imagesTr/odd.nii.gz")
    put(raw, "imagesTs/brain_003_0001.nii.gz", data=b"")
    found = scan("nnunet_raw", raw)
    assert found.records == {}
    assert found.refused == {
        "imagesTr/brain_001": "channel 0001 (FLAIR) is missing; complete the case or exclude it",
        "imagesTr/brain_002": "has a channel 0002, which dataset.json does not name",
        "imagesTr/odd": "its name does not end in a channel's number; rename it to odd_0000.nii.gz",
        "imagesTs/brain_003": "brain_003_0001.nii.gz: file is empty (0 bytes)",
    }


def test_a_training_case_without_labels_is_refused(raw: Path, scan: Callable) -> None:
    (raw / "labelsTr/brain_002.nii.gz").unlink()
    assert "labelsTr/brain_002.nii.gz: no such" in scan("nnunet_raw", raw).refused["imagesTr/brain_002"]


def test_a_count_that_differs_is_said(raw: Path, scan: Callable, caplog: pytest.LogCaptureFixture) -> None:
    say(raw, numTraining=9)
    with caplog.at_level(logging.WARNING):
        scan("nnunet_raw", raw)
    assert "says 9 training cases, there are 2" in caplog.text


@pytest.mark.parametrize(
    "text", [None, "{", "[]", "{}", '{"channel_names": ["CT"]}', '{"channel_names": {"a": "CT"}}']
)
def test_a_broken_json_stops_the_scan(tmp_path: Path, scan: Callable, text: str | None) -> None:
    if text is not None:
        (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(CollectionError, match=r"dataset\.json"):
        scan("nnunet_raw", tmp_path, modality="ct")


def test_tiff_volumes_and_a_missing_folder_stop_the_scan(raw: Path, scan: Callable, put: Callable) -> None:
    put(raw, "imagesTr/cell_1_0000.tif", "imagesTr/cell_1.json")
    say(raw, file_ending=".tif", channel_names={"0": "em"})
    with pytest.raises(CollectionError, match=r"cell_1\.json: volumes in TIFF.*convert them"):
        scan("nnunet_raw", raw)
    say(raw / "imagesTr")
    with pytest.raises(CollectionError, match="no folder imagesTr"):
        scan("nnunet_raw", raw / "imagesTr")


def test_natural_pictures_are_one_file_of_three_channels(tmp_path: Path, scan: Callable) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    array = RNG.integers(0, 255, (5, 6, 3)).astype(np.uint8)
    Pillow.fromarray(array).save(tmp_path / "imagesTr/a_0000.png")
    Pillow.fromarray(array[..., 0] // 200).save(tmp_path / "labelsTr/a.png")
    say(tmp_path, channel_names={"0": "R", "1": "G", "2": "B"}, file_ending=".png", numTraining=1)
    record = scan("nnunet_raw", tmp_path, modality="endoscopy").only
    (image,) = read(record.paths, given=record.given)
    np.testing.assert_array_equal(image.array, array.transpose(2, 0, 1))


def test_a_raw_folder_becomes_shards(tmp_path: Path, stored: Callable) -> None:
    channels = [volume(tmp_path / f"imagesTr/x_000{n}.nii.gz") for n in range(2)]
    mask = volume(tmp_path / "labelsTr/x.nii.gz", np.uint8, 3)
    say(tmp_path, numTraining=1)
    (sample,) = stored("nnunet_raw", tmp_path)
    np.testing.assert_array_equal(sample.image, np.stack(channels))
    np.testing.assert_array_equal(sample.mask, mask)
    assert sample.meta["facts"]["channels"] == ["T1", "FLAIR"]
    assert sample.meta["mask"]["classes"] == {"1": "edema", "2": "core"}


def test_the_real_decathlon_folder_renamed_is_read_as_raw(
    realdata: Path, tmp_path: Path, stored: Callable
) -> None:
    source = realdata / "mr_hippocampus_msd"
    names = [path.name for path in sorted((source / "imagesTr").iterdir())[:3]]
    for name in names:
        for folder, target in (("imagesTr", name.replace(".nii.gz", "_0000.nii.gz")), ("labelsTr", name)):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / target).symlink_to(source / folder / name)
    say(
        tmp_path,
        channel_names={"0": "T1"},
        labels={"background": 0, "anterior": 1, "posterior": 2},
        numTraining=3,
    )
    samples = stored("nnunet_raw", tmp_path)
    assert [sample.meta["mask"]["present"] for sample in samples] == [[1, 2]] * 3
