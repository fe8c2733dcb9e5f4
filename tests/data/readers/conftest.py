"""Builders of DICOM files for the reader's tests, as fixtures that return functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

RNG = np.random.default_rng(0)
SERIES = generate_uid(entropy_srcs=["series"])
AXIAL = (1.0, 0, 0, 0, 1, 0)


def _make(pixels: np.ndarray, **fields) -> FileDataset:
    """A CT-like object; fields override or add elements."""
    pixels = np.asarray(pixels)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = SERIES, generate_uid(entropy_srcs=["study"])
    dataset.PatientID, dataset.PatientName, dataset.Modality = "P-17", "Mustermann^Erika", "CT"
    colours = pixels.shape[-1] if pixels.ndim > 2 and pixels.shape[-1] == 3 else 1
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if colours == 3 else pixels.shape[-2:]
    dataset.SamplesPerPixel = colours
    dataset.PhotometricInterpretation = "RGB" if colours == 3 else "MONOCHROME2"
    if colours == 3:
        dataset.PlanarConfiguration = 0
    if pixels.ndim == (4 if colours == 3 else 3):
        dataset.NumberOfFrames = len(pixels)
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    for key, value in fields.items():
        setattr(dataset, key, value)
    return dataset


def _save(path: Path, dataset: FileDataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)
    return path


def _series(
    folder: Path, volume: np.ndarray, *, orientation=AXIAL, gap: float = 2.5, origin=(-10.0, 20, 30), **fields
) -> list[Path]:
    """Slices [D, H, W] along the normal, in files whose names say nothing of their order."""
    rows, columns = np.array(orientation[3:]), np.array(orientation[:3])
    normal = np.cross(columns, rows)
    paths = []
    for index, pixels in enumerate(volume):
        own = {
            "ImageOrientationPatient": [float(f"{value:.12f}") for value in orientation],
            "ImagePositionPatient": [float(f"{v:.9f}") for v in np.array(origin) + index * gap * normal],
            "PixelSpacing": [0.7, 1.1],
            "SliceThickness": gap,
            "InstanceNumber": index + 1,
        }
        dataset = _make(pixels, **{**own, **fields})
        paths.append(_save(folder / f"{(index * 7) % 31:03d}.dcm", dataset))
    return sorted(paths)


def _volume(shape=(5, 6, 7)) -> np.ndarray:
    return RNG.integers(0, 2000, shape).astype(np.int16)


def _remove_fields(paths: list[Path], *names: str) -> None:
    for path in paths:
        dataset = pydicom.dcmread(path)
        for name in names:
            delattr(dataset, name)
        dataset.save_as(path)


@pytest.fixture
def make() -> Callable:
    return _make


@pytest.fixture
def save() -> Callable:
    return _save


@pytest.fixture
def series() -> Callable:
    return _series


@pytest.fixture
def volume() -> Callable:
    return _volume


@pytest.fixture
def remove_fields() -> Callable:
    return _remove_fields
