"""data/layouts/dicom_tree.py: files become series by their headers, whatever their folders."""

from __future__ import annotations

import logging
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medloom.data.config import structured
from medloom.data.errors import ConfigError
from medloom.data.layouts import LAYOUTS, Refusal, Source
from medloom.data.readers import read
from medloom.data.sample import Modality, Record
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

TREE = LAYOUTS["dicom_tree"]
ROOT_UID = "1.2.826.0.1.3680043.10.1"


def dicom(path: Path, *, series: str | None = "1", number: int = 1, **tags: Any) -> Path:
    """Write one CT slice of 4 x 5 pixels whose values are its number; a tag of None is left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    uid = f"{ROOT_UID}.{series or 9}.{number}.{zlib.crc32(path.name.encode())}"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    values = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": uid,
        "SeriesInstanceUID": f"{ROOT_UID}.{series}" if series else None,
        "StudyInstanceUID": f"{ROOT_UID}.77",
        "PatientID": "patient one",
        "Modality": "CT",
        "InstanceNumber": number,
        "ImagePositionPatient": [0.0, 0.0, 2.0 * number],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [1, 1],
        "Rows": 4,
        "Columns": 5,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "PixelData": np.full((4, 5), number, "<i2").tobytes(),
        **tags,
    }
    for key, value in values.items():
        if value is not None:
            setattr(file, key, value)
    file.save_as(path, enforce_file_format=True)
    return path


def scan(root: Path, modality: Modality | None = None, **options: Any) -> list[Record | Refusal]:
    checked = structured(TREE.Options, options, where="options")
    source = Source(dataset="d", layout="dicom_tree", root=root, modality=modality, options=checked)
    return list(TREE.scan(root, source, checked))


def records(items: list[Record | Refusal]) -> dict[str, Record]:
    assert not [item for item in items if isinstance(item, Refusal)]
    return {item.name: item for item in items if isinstance(item, Record)}


def test_a_series_is_gathered_from_any_folders_and_the_reader_takes_it(tmp_path: Path) -> None:
    numbers = list(range(1, 7))
    random.Random(1).shuffle(numbers)
    for place, number in enumerate(numbers):
        dicom(tmp_path / f"disc{place % 2}/IM{place:04d}", number=number)  # no suffix, as on many discs
    found = records(scan(tmp_path))
    assert list(found) == [f"{ROOT_UID}.1"]
    record = found[f"{ROOT_UID}.1"]
    assert (record.subject, record.study, record.modality) == ("patient one", f"{ROOT_UID}.77", Modality.CT)
    (image,) = read(list(record.paths))
    assert image.array.shape == (1, 6, 4, 5)
    assert image.array[0, :, 0, 0].tolist() == [1, 2, 3, 4, 5, 6]


def test_moving_the_files_keeps_the_name_of_a_series(tmp_path: Path) -> None:
    for number in (1, 2):
        dicom(tmp_path / f"a/x/{number}.dcm", number=number)
        dicom(tmp_path / f"b/{number}.dcm", number=number)
    assert [r.name for r in scan(tmp_path / "a")] == [r.name for r in scan(tmp_path / "b")]


def test_two_series_in_one_folder_are_two_records(tmp_path: Path) -> None:
    for number in (1, 2):
        dicom(tmp_path / f"a{number}.dcm", series="1", number=number)
        dicom(tmp_path / f"b{number}.dcm", series="2", number=number)
    assert {name: len(record.paths) for name, record in records(scan(tmp_path)).items()} == {
        f"{ROOT_UID}.1": 2,
        f"{ROOT_UID}.2": 2,
    }


@pytest.mark.parametrize(
    "tags",
    [
        {"Modality": "US"},
        {"Modality": "DX"},
        {"Modality": "XA", "ImagePositionPatient": None},
        {"ImagePositionPatient": None},
        {"ImageOrientationPatient": None},
        {"NumberOfFrames": 3},
        {"series": None},
    ],
)
def test_what_is_no_slice_stands_alone(tmp_path: Path, tags: dict[str, Any]) -> None:
    dicom(tmp_path / "a/1.dcm", number=1, **tags)
    dicom(tmp_path / "a/2.dcm", number=2, **tags)
    assert list(records(scan(tmp_path))) == ["a/1.dcm", "a/2.dcm"]


def test_the_modality_is_the_files_unless_the_collection_says_otherwise(tmp_path: Path) -> None:
    dicom(tmp_path / "1.dcm", Modality="MR")
    assert [r.modality for r in records(scan(tmp_path)).values()] == [Modality.MRI]
    assert [r.modality for r in records(scan(tmp_path, Modality.FMRI)).values()] == [Modality.FMRI]
    dicom(tmp_path / "1.dcm", Modality="ZZ")
    assert [r.modality for r in records(scan(tmp_path)).values()] == [None]


def test_subjects_from_folders(tmp_path: Path) -> None:
    dicom(tmp_path / "p1/deep/1.dcm", series="1")
    dicom(tmp_path / "p2/1.dcm", series="2")
    dicom(tmp_path / "loose.dcm", series="3")
    items = scan(tmp_path, subject="folder")
    assert [item.subject for item in items if isinstance(item, Record)] == ["p1", "p2"]
    assert ["lies in no folder" in item.reason for item in items if isinstance(item, Refusal)] == [True]


def test_a_file_without_patient_is_refused_with_the_way_out(tmp_path: Path) -> None:
    dicom(tmp_path / "1.dcm", PatientID="")
    (item,) = scan(tmp_path)
    assert isinstance(item, Refusal) and "options.subject: folder" in item.reason


def test_slices_of_two_patients_in_one_series_are_refused_together(tmp_path: Path) -> None:
    dicom(tmp_path / "1.dcm", number=1)
    dicom(tmp_path / "2.dcm", number=2, PatientID="patient two")
    (item,) = scan(tmp_path)
    assert isinstance(item, Refusal)
    assert "2 values of subject" in item.reason
    assert "patient" not in item.reason


def test_other_files_reports_and_indices_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dicom(tmp_path / "1.dcm")
    dicom(tmp_path / "sr.dcm", Modality="SR", Rows=None, Columns=None, PixelData=None, series="5")
    dicom(tmp_path / "seg.dcm", Modality="SEG", series="6")
    dicom(tmp_path / "DICOMDIR", series="7")
    (tmp_path / "readme.txt").write_text("x" * 200)
    with caplog.at_level(logging.INFO):
        assert len(scan(tmp_path)) == 1
    assert "1 .txt" in caplog.text
    assert "'SEG': 1, 'SR': 1" in caplog.text


def test_broken_files_are_refused_one_by_one(tmp_path: Path) -> None:
    dicom(tmp_path / "good.dcm")
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "junk.dcm").write_bytes(b"junk" * 100)
    items = scan(tmp_path)
    assert [item.name for item in items if isinstance(item, Refusal)] == ["empty.dcm", "junk.dcm"]
    assert len(items) == 3


def test_an_unknown_subject_rule_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="subject: unknown 'patient'; did you mean patient_id"):
        scan(tmp_path, subject="patient")
