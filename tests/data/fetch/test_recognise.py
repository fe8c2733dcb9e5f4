"""Layouts recognised from what was unpacked; what is written finds the images, or is not kept."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from medloom.data.catalog import Dataset
from medloom.data.collection import Collection, scan
from medloom.data.fetch import recognise
from medloom.data.fetch.fetch import Options, fetch
from medloom.data.fetch.plan import Part, Plan
from medloom.data.ingest.build import build
from medloom.data.sample import Modality, Organ
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from . import sets

OURS = Dataset(id="our-set", name="Ours", modalities=(Modality.DERMOSCOPY,), organs=(Organ.SKIN,))


def put(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.new("L", (20, 16), number).save(buffer, "JPEG" if path.suffix == ".jpg" else "PNG")
        path.write_bytes(buffer.getvalue())
    return folder


def described(folder: Path, tmp_path: Path, dataset: Dataset = OURS):
    """The fetched collection of a folder that the user has."""
    return fetch(Plan(dataset, "ours", (Part("x", given=folder),)), tmp_path / "data", Options())


def records(found) -> list:
    assert found.collection is not None
    return [record for _, record in scan(Collection.load(found.collection)).records]


def test_folders_that_are_classes(tmp_path):
    put(tmp_path / "in", "set/nevus/1.png", "set/nevus/2.png", "set/melanoma/deep/3.png", "set/readme.txt")
    found = records(described(tmp_path / "in", tmp_path))
    assert sorted(record.labels["class"] for record in found) == ["melanoma", "nevus", "nevus"]


def test_classes_below_splits(tmp_path):
    put(tmp_path / "in", "train/nevus/1.png", "train/melanoma/2.png", "test/nevus/3.png")
    found = records(described(tmp_path / "in", tmp_path))
    assert sorted((record.split, record.labels["class"]) for record in found) == [
        ("test", "nevus"), ("train", "melanoma"), ("train", "nevus"),
    ]  # fmt: skip


def test_images_beside_masks_become_a_table(tmp_path):
    names = [f"Set/{folder}/{i}.png" for folder in ("images", "masks") for i in range(3)]
    put(tmp_path / "in", *names, "Set/images/alone.png")
    found = records(described(tmp_path / "in", tmp_path))
    assert {record.paths[0].name: record.mask and record.mask.parent.name for record in found} == {
        "0.png": "masks", "1.png": "masks", "2.png": "masks", "alone.png": None,
    }  # fmt: skip
    assert all(not record.labels for record in found)


def test_masks_in_jpeg_are_left_out_and_said_to_be(tmp_path):
    put(tmp_path / "in", "Kvasir-SEG/images/a.jpg", "Kvasir-SEG/masks/a.jpg")
    result = described(tmp_path / "in", tmp_path)
    (record,) = records(result)
    assert record.paths[0].parent.name == "images" and record.mask is None
    assert "# Left out, as they look like annotations: masks" in result.collection.read_text()


def test_two_masks_of_an_image_are_not_guessed_between(tmp_path):
    """As the Montgomery films lie."""
    folders = ["CXR_png", "ManualMask/leftMask", "ManualMask/rightMask"]
    put(tmp_path / "in", *(f"{folder}/MCUCXR_{i}.png" for folder in folders for i in range(2)))
    result = described(tmp_path / "in", tmp_path)
    assert [record.mask for record in records(result)] == [None, None]
    assert "annotations: leftMask, rightMask" in result.collection.read_text()


def test_splits_of_a_table_are_kept(tmp_path):
    put(tmp_path / "in", "Training/Images/1.png", "Testing/Images/2.png")
    (tmp_path / "in/Training/Annotations").mkdir()
    (tmp_path / "in/Training/Annotations/1.xml").write_text("<annotation/>")
    found = records(described(tmp_path / "in", tmp_path))
    assert {record.paths[0].name: record.split for record in found} == {"1.png": "train", "2.png": "test"}


@pytest.mark.parametrize(
    "names", [["images/1.png", "images/2.png"], ["part_1/1.png", "part_2/2.png"], ["1.png"]]
)
def test_plain_folders_are_no_classes(tmp_path, names):
    put(tmp_path / "in", *names)
    found = records(described(tmp_path / "in", tmp_path))
    assert len(found) == len(names) and not any(record.labels for record in found)


def test_a_decathlon_folder_under_another_name(tmp_path):
    catalog = sets.built_in()
    task = catalog.msd["msd-task09-spleen"]
    import shutil

    shutil.unpack_archive(sets.msd_tar(tmp_path / "a.tar", task), tmp_path / "in", "tar")
    found = records(described(tmp_path / "in", tmp_path))
    assert {record.split for record in found} == {"train", "test"} and len(found) == 5


def test_nnunet_raw_and_medmnist_under_other_names(tmp_path):
    folder = tmp_path / "in" / "Dataset001_Ours"
    (folder / "imagesTr").mkdir(parents=True)
    facts = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "x": 1}, "file_ending": ".nii.gz"}
    facts |= {"numTraining": 1}
    (folder / "dataset.json").write_text(json.dumps(facts))
    (folder / "imagesTr" / "a_0000.nii.gz").write_bytes(b"junk")
    (folder / "labelsTr").mkdir()
    (folder / "labelsTr" / "a.nii.gz").write_bytes(b"junk")
    guess = next(recognise.guesses(tmp_path / "in"))
    assert (guess.layout, guess.root) == ("nnunet_raw", folder)
    other = tmp_path / "other"
    other.mkdir()
    sets.medmnist_npz(other / "own.npz", sets.built_in().medmnist["pathmnist"], 28)
    assert next(recognise.guesses(other)).layout == "medmnist"


def dicom(path: Path, number: int, series: str) -> None:
    data = pydicom.Dataset()
    data.PatientID, data.SeriesInstanceUID, data.StudyInstanceUID = "p", series, "1.2.3"
    data.SOPClassUID, data.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", generate_uid()
    data.Modality, data.Rows, data.Columns, data.InstanceNumber = "CT", 8, 8, number
    data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, float(number)], [1, 0, 0, 0, 1, 0]
    data.PixelSpacing, data.SliceThickness, data.SamplesPerPixel = [1, 1], 1, 1
    data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelData = np.full((8, 8), number, np.uint16).tobytes()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def test_dicom_without_suffixes_and_without_its_masks(tmp_path):
    """As 3D-IRCADb lies: PATIENT_DICOM/image_0, MASKS_DICOM/liver/image_0."""
    for number in range(4):
        dicom(tmp_path / f"in/1/PATIENT_DICOM/image_{number}", number, "1.2.3.4")
        dicom(tmp_path / f"in/1/MASKS_DICOM/liver/image_{number}", number, "1.2.3.5")
    result = described(tmp_path / "in", tmp_path)
    assert result.images == 1
    built = build(Collection.load(result.collection), tmp_path / "shards", workers=0)
    assert not built.failures and built.manifest.sources[0].count == 1


def test_what_no_layout_knows_is_said_and_nothing_is_written(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "data.hdf5").write_bytes(b"\x89HDF")
    found = described(tmp_path / "in", tmp_path)
    assert found.collection is None and found.reason == "no layout was recognised"
    assert not list((tmp_path / "data").rglob("*.yaml"))
