"""Write phantoms as the files that real datasets consist of: NIfTI, DICOM series, PNG, JPEG, CSV, JSON.

The files are meant to exercise the readers: NIfTI runs to the left and posterior, one kind stores a scaled
intercept and one is sagittal; DICOM slices are tilted and out of order, and two series share a folder. The
same input gives the same bytes.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

MAKER = "medloom phantom"


def write_nifti(
    path: Path, volume: np.ndarray, spacing: Sequence[float], *, intercept: int = 0, sagittal: bool = False
) -> None:
    """Write a volume [D, H, W] (S, A, R) as .nii.gz in the order that scanners' converters use.

    Args:
        path: ends in .nii.gz; its folder is made.
        volume: integers.
        spacing: mm (D, H, W).
        intercept: stored as scl_inter; the file then holds volume - intercept as uint16.
        sagittal: store the left-right axis slowest, as a sagittal acquisition does.
    """
    stored = volume if not intercept else (volume.astype(np.int32) - intercept).astype(np.uint16)
    array = stored.transpose(2, 1, 0)[::-1, ::-1]  # to L, P, S
    steps = np.array(spacing, float)[::-1]
    affine = np.diag([-steps[0], -steps[1], steps[2], 1.0])
    affine[:3, 3] = (np.array(array.shape) - 1) * steps / 2 * [1, 1, -1]
    if sagittal:
        array, affine = array.transpose(1, 2, 0), affine[:, [1, 2, 0, 3]]
    image = nib.Nifti1Image(np.ascontiguousarray(array), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = MAKER.encode()
    if intercept:
        image.header.set_slope_inter(1, intercept)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(image.to_bytes(), 4, mtime=0))


def write_series(
    folder: Path,
    volume: np.ndarray,
    spacing: Sequence[float],
    *,
    patient: str,
    description: str,
    number: int,
    tilt: float,
    echo: tuple[float, float],
    order: np.ndarray,
) -> None:
    """Write a volume [D, H, W] (S, A, R) as an axial MR series, a file a slice.

    Args:
        folder: may hold other series of the patient.
        volume: uint16 of 12 bits.
        spacing: mm (D, H, W).
        patient: PatientID, also the seed of all identifiers.
        description: SeriesDescription; "phantom" is put before it.
        number: of the series.
        tilt: rotation of the slices about the left-right axis, radians.
        echo: repetition and echo time in ms.
        order: permutation of the slices in which the files are numbered.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pixels = volume[:, ::-1, ::-1]  # rows to posterior, columns to the patient's left: LPS
    rows = np.array([0.0, np.cos(tilt), np.sin(tilt)])
    columns = np.array([1.0, 0.0, 0.0])
    normal = np.cross(columns, rows)
    half = (np.array(pixels.shape) - 1) / 2 * np.array(spacing)
    for index, slot in enumerate(order):
        offset = (int(slot) * spacing[0] - half[0]) * normal
        position = offset - half[1] * rows - half[2] * columns
        dataset = _slice(patient, number, int(slot))
        dataset.SeriesDescription = f"phantom {description}"
        dataset.RepetitionTime, dataset.EchoTime = echo
        dataset.ImagePositionPatient = [round(float(value), 4) for value in position]
        dataset.ImageOrientationPatient = [round(float(value), 6) for value in (*columns, *rows)]
        dataset.PixelSpacing = [round(float(spacing[1]), 4), round(float(spacing[2]), 4)]
        dataset.SliceThickness = dataset.SpacingBetweenSlices = round(float(spacing[0]), 4)
        dataset.Rows, dataset.Columns = pixels.shape[1:]
        dataset.PixelData = np.ascontiguousarray(pixels[int(slot)]).astype("<u2").tobytes()
        dataset.save_as(folder / f"S{number}I{index:03d}.dcm", enforce_file_format=True)


def _slice(patient: str, number: int, slot: int) -> FileDataset:
    """A DICOM MR object without geometry and pixels."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[MAKER, patient, str(number), str(slot)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = MRImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[MAKER, patient])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[MAKER, patient, str(number)])
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=[MAKER, patient, "frame"])
    dataset.PatientID = dataset.PatientName = patient
    dataset.Modality, dataset.Manufacturer, dataset.ManufacturerModelName = "MR", MAKER, "phantom"
    dataset.BodyPartExamined, dataset.MagneticFieldStrength = "HEAD", 3.0
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.MRAcquisitionType = "SE", "NONE", "2D"
    dataset.SeriesNumber, dataset.InstanceNumber = number, slot + 1
    dataset.ImageType = ["DERIVED", "PRIMARY", "PHANTOM"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    return dataset


def write_picture(path: Path, pixels: np.ndarray, *, quality: int = 92) -> None:
    """Write uint8 or uint16 [H, W] or uint8 [H, W, 3] as the suffix says; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    kind = "JPEG" if path.suffix == ".jpg" else "PNG"
    options = {"quality": quality} if kind == "JPEG" else {"compress_level": 6}
    Image.fromarray(pixels).save(buffer, kind, **options)
    path.write_bytes(buffer.getvalue())


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys as CSV."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_decathlon(path: Path, *, name: str, labels: Mapping[int, str], cases: Sequence[str]) -> None:
    """Write the dataset.json of the Medical Segmentation Decathlon for CT cases with label maps."""
    facts = {
        "name": name,
        "description": f"{MAKER}: synthetic, no patient",
        "licence": "CC0-1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {str(value): label for value, label in {0: "background", **labels}.items()},
        "numTraining": len(cases),
        "numTest": 0,
        "training": [
            {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in cases
        ],
        "test": [],
    }
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
