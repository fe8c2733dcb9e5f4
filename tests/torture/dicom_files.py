"""DICOM objects for the zoo: one slice, series, multi-frame and enhanced objects, in any transfer syntax."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def slice_of(pixels: np.ndarray, sop_class: str = uid.CTImageStorage, **fields: Any) -> FileDataset:
    """A CT-like object of pixels [H, W], [H, W, 3], [F, H, W] or [F, H, W, 3]; fields override or add."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = sop_class
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    dataset.SeriesInstanceUID = uid.generate_uid(entropy_srcs=["series"])
    dataset.StudyInstanceUID = uid.generate_uid(entropy_srcs=["study"])
    dataset.FrameOfReferenceUID = uid.generate_uid(entropy_srcs=["frame"])
    dataset.PatientID, dataset.PatientName, dataset.Modality = "P-17", "Nobody^None", "CT"
    dataset.StudyDate, dataset.StudyTime, dataset.SeriesNumber = "20200101", "120000", 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    colour = pixels.ndim > 2 and pixels.shape[-1] == 3
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    if colour:
        dataset.PlanarConfiguration = 0
    if pixels.ndim == (4 if colour else 3):
        dataset.NumberOfFrames = len(pixels)
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = padded(pixels.astype(pixels.dtype.newbyteorder("<")).tobytes())
    for key, value in fields.items():
        setattr(dataset, key, value)
    return dataset


def padded(data: bytes) -> bytes:
    """`data` with an even length."""
    return data + bytes(len(data) % 2)


def written(path: Path, dataset: Dataset, **how: Any) -> Path:
    """Write an object, whatever it says of itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not how:
            how = {"enforce_file_format": True}
        dataset.save_as(path, **how)
    return path


def one(make: Callable[[], Dataset], name: str = "a.dcm", **how: Any) -> Callable[[Path], list[Path]]:
    """A form of a single file."""

    def write(folder: Path) -> list[Path]:
        return [written(folder / name, make(), **how)]

    return write


def place(
    index: int,
    *,
    orientation: Sequence[float] = AXIAL,
    gap: float = 2.5,
    origin=(-10.0, 20.0, 30.0),
    shear: Sequence[float] = (0, 0, 0),
) -> dict[str, Any]:
    """Geometry fields of the slice `index` along the normal (plus `shear` mm a slice)."""
    normal = np.cross(orientation[:3], orientation[3:])
    position = np.array(origin) + index * (gap * normal + np.array(shear))
    return {
        "ImageOrientationPatient": [f"{value:.10g}" for value in orientation],
        "ImagePositionPatient": [f"{value:.10g}" for value in position],
        "PixelSpacing": [0.7, 1.1],
        "SliceThickness": gap,
        "InstanceNumber": index + 1,
    }


def series(
    volume: np.ndarray,
    edit: Callable[[int, Dataset], Dataset | None] | None = None,
    *,
    fields: dict[str, Any] | None = None,
    **where: Any,
) -> Callable[[Path], list[Path]]:
    """A form of one file a slice of [D, H, W]; `edit` changes slice n, or drops it by returning None."""

    def write(folder: Path) -> list[Path]:
        paths = []
        for index, pixels in enumerate(volume):
            dataset: Dataset | None = slice_of(pixels, **place(index, **where), **(fields or {}))
            if edit is not None:
                dataset = edit(index, dataset)
            if dataset is not None:  # names that say nothing of the order
                paths.append(written(folder / f"{(index * 7) % 31:03d}.dcm", dataset))
        return sorted(paths)

    return write


def compressed(
    dataset: Dataset, syntax: str, frames: list[bytes], *, fragments: int = 1, table: bool = True
) -> Dataset:
    """The object with encapsulated frames."""
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate(frames, fragments_per_frame=fragments, has_bot=table)
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    return dataset


def encoded(pixels: np.ndarray, syntax: str) -> bytes:
    """One frame [H, W] or [H, W, 3] in a transfer syntax, by imagecodecs."""
    bits = 8 * pixels.dtype.itemsize
    match syntax:
        case uid.JPEGBaseline8Bit:
            return imagecodecs.jpeg8_encode(pixels, level=95)
        case uid.JPEGExtended12Bit:
            return imagecodecs.jpeg8_encode(pixels, level=95, bitspersample=12 if bits == 16 else 8)
        case uid.JPEGLossless | uid.JPEGLosslessSV1:
            if pixels.ndim == 3:
                return imagecodecs.jpeg8_encode(
                    pixels, lossless=True, predictor=1, colorspace="RGB", outcolorspace="RGB"
                )
            return imagecodecs.ljpeg_encode(pixels, bitspersample=bits)
        case uid.JPEGLSLossless:
            return imagecodecs.jpegls_encode(pixels)
        case uid.JPEGLSNearLossless:
            return imagecodecs.jpegls_encode(pixels, level=2)
        case uid.JPEG2000Lossless:
            return imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True)
        case uid.JPEG2000:
            return imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", level=90)
        case uid.HTJ2KLossless | uid.HTJ2KLosslessRPCL:
            return imagecodecs.htj2k_encode(pixels, reversible=True)
        case uid.HTJ2K:
            return imagecodecs.htj2k_encode(pixels, reversible=False, level=0.00002)
    raise AssertionError(syntax)


def enhanced(
    volume: np.ndarray,
    sop_class: str,
    *,
    order: Sequence[int] | None = None,
    shared_place: bool = True,
    scales: Sequence[tuple[float, float]] | None = None,
    orientation: Sequence[float] = AXIAL,
    gap: float = 2.5,
    modality: str = "MR",
    repeat: int = 1,
) -> FileDataset:
    """An enhanced multi-frame object of [F, H, W]; frames are stored in `order`, `repeat` a position."""
    order = list(order if order is not None else range(len(volume)))
    dataset = slice_of(volume[order], sop_class, Modality=modality, InstanceNumber=1)
    shared, frames = Dataset(), []
    measures, turn = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.7, 1.1], gap
    measures.SpacingBetweenSlices = gap
    turn.ImageOrientationPatient = [f"{value:.10g}" for value in orientation]
    if shared_place:
        shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [turn]
    dimension = Dataset()
    dimension.DimensionIndexPointer, dimension.FunctionalGroupPointer = 0x00200032, 0x00209113
    dataset.DimensionIndexSequence = [dimension]
    for number, index in enumerate(order):
        frame, where, content, values = Dataset(), Dataset(), Dataset(), Dataset()
        fields = place(index // repeat, orientation=orientation, gap=gap)
        where.ImagePositionPatient = fields["ImagePositionPatient"]
        content.InStackPositionNumber, content.StackID = index // repeat + 1, "1"
        content.DimensionIndexValues = [index // repeat + 1]
        content.TemporalPositionIndex = index % repeat + 1
        content.FrameAcquisitionNumber = number + 1
        slope, intercept = scales[index] if scales else (1, 0)
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = slope, intercept, "US"
        frame.PlanePositionSequence, frame.FrameContentSequence = [where], [content]
        frame.PixelValueTransformationSequence = [values]
        if not shared_place:
            frame.PixelMeasuresSequence, frame.PlaneOrientationSequence = [measures], [turn]
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = frames
    return dataset


def big_endian(dataset: Dataset, pixels: np.ndarray) -> FileDataset:
    """The object as it is written big endian."""
    how = {
        "file_meta": dataset.file_meta,
        "preamble": bytes(128),
        "is_little_endian": False,
        "is_implicit_VR": False,
    }
    swapped = FileDataset("", {element.tag: element for element in dataset}, **how)
    swapped.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    swapped.PixelData = padded(pixels.astype(pixels.dtype.newbyteorder(">")).tobytes())
    swapped["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    return swapped
