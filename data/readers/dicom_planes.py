"""One DICOM object -> its planes: decoded pixels with the place of each slice or frame.

Decoding goes through pydicom and its plug-ins (JPEG, JPEG-LS, JPEG 2000, RLE). Enhanced multi-frame objects
take geometry and rescaling from their functional groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from pydicom.pixels import apply_color_lut, apply_modality_lut, iter_pixels

from ..errors import ReadError
from . import dicom_fields as fields
from .dicom_series import Plane

# All else that decoding raises is the file's fault. A panic of a plug-in in Rust (RLE) is no Exception.
_PASSED_ON = (ReadError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit)


def planes_of(name: str, dataset: Any) -> list[Plane]:
    """Decoded planes of one file: one, or one a frame."""
    pixels = _pixels(name, dataset)  # [F, C, H, W]
    return [_plane(name, dataset, array, index, len(pixels)) for index, array in enumerate(pixels)]


def frame_planes(name: str, dataset: Any, indices: Sequence[int]) -> Iterator[Plane]:
    """The planes of some frames of one file, decoded one at a time. Raises ReadError."""
    frames = fields.count(dataset, "NumberOfFrames") or 1
    decoded = iter_pixels(dataset, indices=list(indices))
    for index in indices:
        try:
            with fields.quiet():
                array = next(decoded)
        except _PASSED_ON:
            raise
        except BaseException as error:  # every decoder plug-in raises its own kinds
            line = fields.line(error, dataset)
            raise ReadError(f"{name}: frame {index} cannot be decoded ({line}); copy it again") from error
        yield _plane(name, dataset, _pixels(name, dataset, array)[0], index, frames)


def is_loop(dataset: Any) -> bool:
    """Whether a file holds frames that have no places in the patient: a film, not a volume."""
    frames = fields.count(dataset, "NumberOfFrames") or 1
    return frames > 1 and frame_geometry(dataset, 0, frames)[0] is None


def _plane(name: str, dataset: Any, array: np.ndarray, index: int, frames: int) -> Plane:
    position, orientation, frame_spacing = frame_geometry(dataset, index, frames)
    slope, intercept = _rescale(dataset, index)
    spacing = frame_spacing or fields.pixel_spacing(dataset)
    thickness = fields.positive(dataset, "SpacingBetweenSlices") or fields.positive(dataset, "SliceThickness")
    if position is not None and spacing is None:
        raise ReadError(f"{name}: a slice position but no pixel spacing, expected both; repair the header")
    return Plane(
        name=name,
        array=array,
        slope=slope,
        intercept=intercept,
        position=position,
        orientation=orientation,
        spacing=spacing,
        thickness=thickness,
        order=(fields.integer(dataset, "InstanceNumber") or 0, *_dimensions(dataset, index), index),
    )


def _dimensions(dataset: Any, index: int) -> tuple[int, ...]:
    """Place of a frame along the object's own dimensions (stack, position, time, echo), in its own order.

    Frames may be stored in any order; which of two at one position came first only this says.
    """
    group = functional_group(dataset, index, "FrameContentSequence")
    values = fields.value(group, "DimensionIndexValues") if group is not None else None
    if values is None:
        return ()
    return tuple(int(value) for value in (values if isinstance(values, Iterable) else [values]))


def _pixels(name: str, dataset: Any, frame: np.ndarray | None = None) -> np.ndarray:
    """Stored pixels [F, C, H, W]: colours as RGB, MONOCHROME1 inverted, lookup tables applied.

    `frame` is one that is decoded already.
    """
    try:
        _check_bits(name, dataset)
        array = dataset.pixel_array if frame is None else frame
        photometric = fields.text(dataset, "PhotometricInterpretation").upper()
        if photometric == "PALETTE COLOR":
            array = apply_color_lut(array, dataset)
            array = (array >> 8).astype(np.uint8) if array.dtype.itemsize == 2 else array
        elif "ModalityLUTSequence" in dataset:
            array = apply_modality_lut(array, dataset)
    except _PASSED_ON:
        raise
    except BaseException as error:  # every decoder plug-in raises its own kinds
        line = fields.line(error, dataset)
        raise ReadError(f"{name}: pixels cannot be decoded ({line}); copy it again") from error
    coloured = photometric == "PALETTE COLOR" or fields.count(dataset, "SamplesPerPixel") > 1
    said = 1 if frame is not None else fields.count(dataset, "NumberOfFrames") or 1
    array = _frames(name, said, array, coloured)
    if array.shape[1] == 3 and all(np.array_equal(array[:, 0], array[:, channel]) for channel in (1, 2)):
        array = array[:, :1]
    if photometric == "MONOCHROME1" and array.dtype.kind in "iu":
        top = 2 ** fields.count(dataset, "BitsStored", 8 * array.dtype.itemsize) - 1
        # Signed stored values lie around -1/2, unsigned ones around top/2.
        array = (np.array(-1 if array.dtype.kind == "i" else top, array.dtype) - array).astype(array.dtype)
    return array


def _check_bits(name: str, dataset: Any) -> None:
    """Refuse values that do not lie at the low end of their words: decoders cut them wrongly and silently."""
    stored, high = fields.count(dataset, "BitsStored"), fields.count(dataset, "HighBit")
    packed = "PixelData" in dataset and dataset["PixelData"].is_undefined_length
    if stored and high > stored - 1 and not packed:
        raise ReadError(
            f"{name}: {stored} bits stored with high bit {high}, expected {stored - 1}; convert it (dcmconv)"
        )


def _frames(name: str, said: int, array: np.ndarray, coloured: bool) -> np.ndarray:
    """[F, C, H, W] of what pydicom decoded: [H, W], [F, H, W], [H, W, C] or [F, H, W, C]."""
    plane = array.shape[-3:] if coloured else array.shape[-2:]
    found = array.size // math.prod(plane)
    if said != found:
        raise ReadError(
            f"{name}: pixels of {found} frames where the header says {said}; repair NumberOfFrames or copy it"
        )
    array = array.reshape(found, *plane)
    return np.moveaxis(array, -1, 1) if coloured else array[:, None]


def frame_geometry(
    dataset: Any, index: int, frames: int
) -> tuple[np.ndarray | None, np.ndarray | None, tuple[float, float] | None]:
    """Position, orientation and pixel spacing of one frame, each None when the file does not say."""
    if frames == 1 and "PerFrameFunctionalGroupsSequence" not in dataset:
        return (
            fields.vector(dataset, "ImagePositionPatient", 3),
            fields.vector(dataset, "ImageOrientationPatient", 6),
            None,
        )
    if "PerFrameFunctionalGroupsSequence" in dataset or "SharedFunctionalGroupsSequence" in dataset:
        spacing = functional_group(dataset, index, "PixelMeasuresSequence")
        pair = fields.numbers(spacing, "PixelSpacing", 2) if spacing is not None else None
        place = functional_group(dataset, index, "PlanePositionSequence")
        turn = functional_group(dataset, index, "PlaneOrientationSequence")
        return (
            fields.vector(place, "ImagePositionPatient", 3) if place is not None else None,
            fields.vector(turn, "ImageOrientationPatient", 6) if turn is not None else None,
            (pair[0], pair[1]) if pair and min(pair) > 0 else None,
        )
    return *_slice_vector(dataset, index, frames), None


def _slice_vector(dataset: Any, index: int, frames: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Position of a frame of a reconstructed nuclear medicine volume: the first one's plus even steps."""
    detectors = fields.items(dataset, "DetectorInformationSequence")
    origin = detectors[0] if detectors else dataset
    position = fields.vector(origin, "ImagePositionPatient", 3)
    orientation = fields.vector(origin, "ImageOrientationPatient", 6)
    gap = fields.positive(dataset, "SpacingBetweenSlices")
    slices = fields.integer(dataset, "NumberOfSlices")
    if position is None or orientation is None or gap is None or slices != frames:
        return None, None
    normal = np.cross(orientation[:3], orientation[3:])
    return position + normal * gap * index, orientation


def functional_group(dataset: Any, index: int, name: str) -> Any | None:
    """First item of a functional group, of the frame or shared by all. Source: DICOM PS3.3 C.7.6.16."""
    per_frame = fields.items(dataset, "PerFrameFunctionalGroupsSequence")
    shared = fields.items(dataset, "SharedFunctionalGroupsSequence")
    for holder in per_frame[index : index + 1] + shared[:1]:
        if group := fields.items(holder, name):
            return group[0]
    return None


def _rescale(dataset: Any, index: int) -> tuple[float, float]:
    transform = functional_group(dataset, index, "PixelValueTransformationSequence")
    if transform is None:
        transform = dataset
    if "ModalityLUTSequence" in dataset or fields.count(dataset, "SamplesPerPixel") > 1:
        return 1.0, 0.0
    slope, intercept = (fields.numbers(transform, key, 1) for key in ("RescaleSlope", "RescaleIntercept"))
    return (slope[0] if slope else 1.0), (intercept[0] if intercept else 0.0)
