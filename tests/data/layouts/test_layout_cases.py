"""data/layouts/cases.py: a folder a case, files chosen by the words in which their names end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from medloom.data.errors import CollectionError, ConfigError

RNG = np.random.default_rng(0)
WORDS = ("flair", "t1", "t1ce", "t2")
BRATS = {"channels": list(WORDS), "mask": "seg"}


@pytest.fixture
def brats(tmp_path: Path, put: Callable) -> Path:
    for case in ("BraTS20_001", "BraTS20_002"):
        put(tmp_path, *(f"{case}/{case}_{word}.nii.gz" for word in (*WORDS, "seg")))
    put(tmp_path, "survival_info.csv")
    return tmp_path


def test_a_case_is_one_image_of_its_channels(brats: Path, scan: Callable) -> None:
    found = scan("cases", brats, options=BRATS)
    assert not found.refused and list(found.records) == ["BraTS20_001", "BraTS20_002"]
    record = found.records["BraTS20_001"]
    assert [path.name for path in record.paths] == [f"BraTS20_001_{word}.nii.gz" for word in WORDS]
    assert record.given is not None and record.given.channels == WORDS
    assert record.mask == brats / "BraTS20_001/BraTS20_001_seg.nii.gz"
    assert (record.subject, record.study, record.labels) == ("BraTS20_001", "BraTS20_001", {})


def test_unstacked_every_file_is_an_image_of_the_same_subject(brats: Path, scan: Callable) -> None:
    (brats / "BraTS20_001/BraTS20_001_t2.nii.gz").unlink()
    found = scan("cases", brats, options={**BRATS, "stack": False})
    assert len(found.records) == 7 and not found.refused
    record = found.records["BraTS20_001/t1ce"]
    assert (len(record.paths), record.given, record.subject) == (1, None, "BraTS20_001")
    assert record.mask is not None


@pytest.mark.parametrize(
    ("file", "case", "words"),
    [
        ("BraTS-GLI-00000-000-t1c.nii.gz", "BraTS-GLI-00000-000", ["t1c"]),
        ("imaging.nii.gz", "case_00012", ["imaging"]),
        ("12.MR.T2.mha", "12", ["T2"]),
        ("p1 FLAIR.nrrd", "p1", ["flair"]),
    ],
)
def test_words_follow_any_joint_or_are_the_whole_name(
    tmp_path: Path, scan: Callable, put: Callable, file: str, case: str, words: list[str]
) -> None:
    put(tmp_path, f"{case}/{file}")
    assert scan("cases", tmp_path, options={"channels": words}).only.paths == (tmp_path / case / file,)


def test_t1_is_not_the_end_of_another_word(tmp_path: Path, scan: Callable, put: Callable) -> None:
    put(tmp_path, "a/a_ct1.nii.gz", "a/a_t1.nii.gz", "a/a_seg_t1.nii.gz")
    record = scan("cases", tmp_path, options={"channels": ["t1"], "mask": "seg_t1"}).only
    assert (record.paths[0].name, record.mask.name) == ("a_t1.nii.gz", "a_seg_t1.nii.gz")


def test_folders_above_the_case_are_splits_and_classes(tmp_path: Path, scan: Callable, put: Callable) -> None:
    put(
        tmp_path,
        "train/HGG/p1_w1/t1.nii.gz",
        "train/HGG/p1_w2/t1.nii.gz",
        "val/LGG/p2_w1/t1.nii.gz",
        "x/t1.nii.gz",
    )
    options = {
        "channels": ["t1"],
        "split_folders": True,
        "class_folders": True,
        "subject_pattern": r"(p\d)_w",
    }
    found = scan("cases", tmp_path, options=options)
    said = {(r.subject, r.study, r.split, r.labels["class"]) for r in found.records.values()}
    assert said == {
        ("p1", "train/HGG/p1_w1", "train", "HGG"),
        ("p1", "train/HGG/p1_w2", "train", "HGG"),
        ("p2", "val/LGG/p2_w1", "val", "LGG"),
    }
    assert set(found.refused) == {"x"}


def test_without_channels_the_words_that_there_are_are_listed(brats: Path, scan: Callable) -> None:
    with pytest.raises(CollectionError, match=r"options\.channels is empty.*flair, seg, t1, t1ce, t2"):
        scan("cases", brats)
    with pytest.raises(ConfigError, match="'T1' is given twice"):
        scan("cases", brats, options={"channels": ["T1", "t1"]})


def test_cases_that_are_not_whole_are_refused_alone(brats: Path, scan: Callable, put: Callable) -> None:
    (brats / "BraTS20_001/BraTS20_001_t1.nii.gz").unlink()
    put(
        brats,
        "BraTS20_002/old_flair.nii.gz",
        "c/c_t1.nii.gz",
        "c/c_t2.nii.gz",
        "c/c_flair.nii.gz",
        "d/d_x.nii.gz",
    )
    put(brats, "c/c_t1ce.nii.gz", data=b"")
    refused = scan("cases", brats, options=BRATS).refused
    assert refused["BraTS20_001"].startswith("has no t1, of the channels only flair, t1ce, t2; or set stack")
    assert refused["BraTS20_002"].startswith("2 files are flair (BraTS20_002_flair.nii.gz, old_flair.nii.gz)")
    assert refused["c"] == "c_t1ce.nii.gz: file is empty (0 bytes)"
    assert refused["d"] == "has no flair, of the channels only none"


def test_what_is_in_no_channel_is_counted_in_the_log(
    brats: Path, scan: Callable, put: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    put(brats, "BraTS20_001/BraTS20_001_adc.nii.gz", "loose.nii.gz")
    with caplog.at_level(logging.INFO):
        scan("cases", brats, options=BRATS)
    assert "in no channel: 1 adc" in caplog.text
    assert "1 files lie in no case's folder" in caplog.text


def test_a_tree_of_cases_becomes_shards(tmp_path: Path, stored: Callable) -> None:
    arrays = {}
    for word in (*WORDS, "seg"):
        arrays[word] = RNG.integers(0, 3, (6, 7, 5)).astype(np.int16)
        (tmp_path / "case").mkdir(exist_ok=True)
        nib.save(
            nib.Nifti1Image(arrays[word], np.diag([1, 1, 2.5, 1])), tmp_path / f"case/case_{word}.nii.gz"
        )
    keys = {"options": BRATS, "modality": "mri", "mask_classes": {1: "edema", 2: "core"}}
    (sample,) = stored("cases", tmp_path, **keys)
    np.testing.assert_array_equal(sample.image, np.stack([arrays[word].transpose(2, 1, 0) for word in WORDS]))
    np.testing.assert_array_equal(sample.mask, arrays["seg"].transpose(2, 1, 0))
    assert sample.meta["spacing"] == [2.5, 1.0, 1.0]
    assert sample.meta["facts"]["channels"] == list(WORDS)
    assert len(stored("cases", tmp_path, **{**keys, "options": {**BRATS, "stack": False}})) == 4


def test_channels_on_different_grids_are_refused_when_they_are_read(tmp_path: Path, scan: Callable) -> None:
    from medloom.data.errors import ReadError
    from medloom.data.readers import read

    (tmp_path / "c").mkdir()
    for word, size in (("t1", 5), ("t2", 6)):
        nib.save(nib.Nifti1Image(np.zeros((4, 4, size), np.int16), np.eye(4)), tmp_path / f"c/{word}.nii.gz")
    record = scan("cases", tmp_path, options={"channels": ["t1", "t2"]}).only
    with pytest.raises(ReadError, match=r"t2\.nii\.gz: shape .* but t1\.nii\.gz has"):
        read(record.paths, given=record.given)


def test_memory_is_counted_for_all_channels(tmp_path: Path, scan: Callable) -> None:
    from medloom.data.ingest.headers import header_of

    (tmp_path / "c").mkdir()
    for word in ("t1", "t2", "t3"):
        nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)), tmp_path / f"c/{word}.nii.gz")
    header = header_of(scan("cases", tmp_path, options={"channels": ["t1", "t2", "t3"]}).only)
    assert header is not None and header.bytes == 3 * 2 * 4 * 5 * 6
