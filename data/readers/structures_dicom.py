"""DICOM SEG and RTSTRUCT -> structures on the grid of the image that they were drawn on.

SEG: binary, fractional (a voxel belongs from half of the highest fraction on) and label-map objects; a frame
goes where its position says, so left-out empty frames, other orders and parts of the field of view fit.

RTSTRUCT: a voxel belongs to a contour when its centre lies inside (annotations/rasterise.py). Contours of one
region on one slice: what lies wholly inside of what is drawn is a hole (or, inside a hole, an island); a
keyhole contour needs no rule; CLOSEDPLANAR_XOR is taken by its word. Slices between contours stay empty.
Contours may lie across any axis of the image, so oblique series and feet-first patients need nothing special;
contours oblique to the image's axes or between its slices belong to another series and are refused.

Source: DICOM PS3.3 A.51, C.8.20 (Segmentation), C.8.8.5 and C.8.8.6 (Structure Set, ROI Contour).
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from ..annotations.rasterise import polygon_mask
from ..errors import ReadError
from ..sample import Image
from . import dicom_fields as fields
from .dicom_planes import frame_geometry, functional_group
from .grids import Grid
from .source import content
from .structures import Structure

OBJECTS = ("SEG", "RTSTRUCT")
_BETWEEN = 0.25  # voxels that a contour may lie off its slice: positions are written with few digits
_PIXELS = 1 << 31  # voxels of all frames, unpacked


def structures_of(path: Path, like: Image) -> list[Structure] | None:
    """The structures of a SEG or RTSTRUCT file, on the grid of `like`; None for any other DICOM object.

    Raises:
        ReadError: damaged, or not drawn on this image.
    """
    data = content(path)
    try:
        with fields.quiet():
            dataset = pydicom.dcmread(io.BytesIO(data), force=True)
            kind = fields.text(dataset, "Modality").upper()
            if kind not in OBJECTS:
                return None
            found = (
                _segments(dataset, like, path.name) if kind == "SEG" else _regions(dataset, like, path.name)
            )
    except (ReadError, MemoryError):
        raise
    except Exception as error:  # pydicom raises many kinds on damaged data
        line = fields.line(error, locals().get("dataset") or pydicom.Dataset())
        raise ReadError(f"{path.name}: DICOM cannot be read ({line}); copy it again") from error
    if not found:
        raise ReadError(f"{path.name}: a {kind} without a closed structure, expected one or more; exclude it")
    return found


def _segments(dataset: Any, like: Image, name: str) -> list[Structure]:
    pixels = _pixels(dataset, name)
    numbers = [_segment_of(dataset, index) for index in range(len(pixels))]
    place = _placer(dataset, like, pixels.shape, name)
    maps = fields.text(dataset, "SegmentationType").upper() == "LABELMAP"
    found = []
    for item in fields.items(dataset, "SegmentSequence"):
        number = fields.integer(item, "SegmentNumber")
        if number is None or (number == 0 and maps):  # the background of a label map
            continue
        types = fields.items(item, "SegmentedPropertyTypeCodeSequence")
        words = [fields.text(item, "SegmentLabel"), *(fields.text(code, "CodeMeaning") for code in types[:1])]
        frames = [index for index, own in enumerate(numbers) if maps or own == number]

        def draw(frames: list[int] = frames, number: int = number) -> np.ndarray:
            target = np.zeros(like.array.shape[1:], bool)
            for index in frames:
                plane = pixels[index] == number if maps else pixels[index]
                if plane.any():
                    place(index, plane, target)
            return target

        found.append(Structure(number, tuple(filter(None, words)), draw))
    return found


def _pixels(dataset: Any, name: str) -> np.ndarray:
    """[F, H, W]: bool, or the segment numbers of a label map."""
    frames = fields.count(dataset, "NumberOfFrames") or 1
    if frames * fields.count(dataset, "Rows") * fields.count(dataset, "Columns") > _PIXELS:
        raise ReadError(f"{name}: {frames} frames are more than can be unpacked at once; split it")
    if "TotalPixelMatrixColumns" in dataset:
        raise ReadError(f"{name}: a segmentation of a whole slide, expected one of an image or a volume")
    array = dataset.pixel_array
    array = array.reshape(frames, *array.shape[-2:])
    match fields.text(dataset, "SegmentationType").upper():
        case "FRACTIONAL":
            top = fields.count(dataset, "MaximumFractionalValue", 255)
            return 2 * array.astype(np.uint16) >= top
        case "LABELMAP":
            return array
    return array != 0


def _segment_of(dataset: Any, index: int) -> int | None:
    group = functional_group(dataset, index, "SegmentIdentificationSequence")
    return None if group is None else fields.integer(group, "ReferencedSegmentNumber")


def _placer(
    dataset: Any, like: Image, shape: tuple[int, ...], name: str
) -> Callable[[int, np.ndarray, np.ndarray], None]:
    """How a frame's plane is added to the image's grid."""
    size = (int(shape[1]), int(shape[2]))
    if like.ndim == 2:
        if size != like.array.shape[1:]:
            raise ReadError(f"{name}: {size} pixels, the image has {like.array.shape[1:]}; is it another's?")
        frame = like.facts.get("frame")

        def onto_picture(index: int, plane: np.ndarray, target: np.ndarray) -> None:
            referenced = _source_frames(dataset, index)
            if frame is None or not referenced or frame + 1 in referenced:
                target |= plane

        return onto_picture
    if like.affine is None:
        raise ReadError(f"{name}: the image has no place in the patient, expected one to put segments on")
    grid = _grid(like)

    def onto_volume(index: int, plane: np.ndarray, target: np.ndarray) -> None:
        position, turn, spacing = frame_geometry(dataset, index, shape[0])
        if position is None or turn is None or spacing is None:
            raise ReadError(
                f"{name}: frame {index} states no place, expected position and spacing; repair it"
            )
        steps = np.array([turn[3:] * spacing[0], turn[:3] * spacing[1]])
        try:
            grid.box(position, steps, size).add(plane, target)
        except ReadError as error:
            raise ReadError(
                f"{name}: frame {index} is not on the image's grid: {error}; was it drawn on this series?"
            ) from error

    return onto_volume


def _grid(like: Image) -> Grid:
    assert like.affine is not None
    depth, height, width = (int(n) for n in like.array.shape[1:])
    return Grid((depth, height, width), like.affine)


def _source_frames(dataset: Any, index: int) -> set[int]:
    """Numbers (from 1) of the source's frames that a frame was drawn on; none when it does not say."""
    derived = functional_group(dataset, index, "DerivationImageSequence")
    found: set[int] = set()
    for source in fields.items(derived, "SourceImageSequence") if derived is not None else []:
        numbers = fields.value(source, "ReferencedFrameNumber")
        found |= {int(n) for n in (numbers if isinstance(numbers, Iterable) else [numbers]) if n is not None}
    return found


def _regions(dataset: Any, like: Image, name: str) -> list[Structure]:
    if like.ndim != 3 or like.affine is None:
        raise ReadError(f"{name}: contours need a volume with a place in the patient; give its series")
    grid = _grid(like)
    words = {
        fields.integer(item, "ROINumber"): fields.text(item, "ROIName")
        for item in fields.items(dataset, "StructureSetROISequence")
    }
    found = []
    for item in fields.items(dataset, "ROIContourSequence"):
        number = fields.integer(item, "ReferencedROINumber")
        contours = [c for c in fields.items(item, "ContourSequence") if _is_closed(c)]
        if number is None or not contours:
            continue

        def draw(contours: list[Any] = contours, number: int = number) -> np.ndarray:
            return _filled(contours, grid, f"{name}: region {number}")

        found.append(Structure(number, tuple(filter(None, [words.get(number)])), draw))
    return found


def _is_closed(contour: Any) -> bool:
    return fields.text(contour, "ContourGeometricType").upper() in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")


def _filled(contours: list[Any], grid: Grid, what: str) -> np.ndarray:
    """The voxels of one region, bool [D, H, W]."""
    planes: dict[tuple[int, int], list[tuple[np.ndarray, bool]]] = defaultdict(list)
    for contour in contours:
        numbers = fields.value(contour, "ContourData")
        points = np.array([float(n) for n in numbers] if numbers else []).reshape(-1, 3)
        if len(points) < 3:
            continue  # marks nothing
        if not np.isfinite(points).all():
            raise ReadError(f"{what} has a contour with NaN; repair it")
        index = grid.index_of(points)
        axis, slice_ = _plane_of(index, grid, what)
        inner = [a for a in range(3) if a != axis]
        mask = polygon_mask(index[:, inner] + 0.5, [grid.shape[a] for a in inner])
        exclusive = fields.text(contour, "ContourGeometricType").upper() == "CLOSEDPLANAR_XOR"
        planes[axis, slice_].append((mask, exclusive))
    result = np.zeros(grid.shape, bool)
    for (axis, slice_), masks in planes.items():
        result[(slice(None),) * axis + (slice_,)] |= _joined(masks)
    return result


def _plane_of(index: np.ndarray, grid: Grid, what: str) -> tuple[int, int]:
    """The axis across which a contour lies, and the slice."""
    spread = np.ptp(index, axis=0)
    axis = int(np.argmin(spread))
    if spread[axis] > _BETWEEN:
        raise ReadError(
            f"{what} has a contour oblique to the image's axes (over {spread[axis]:.2g} slices), expected it "
            "in one slice; was it drawn on this series?"
        )
    middle = float(index[:, axis].mean())
    slice_ = round(middle)
    if abs(middle - slice_) > _BETWEEN:
        raise ReadError(
            f"{what} has a contour {abs(middle - slice_):.2f} of a slice off the nearest, expected at most "
            f"{_BETWEEN}; was it drawn on this series?"
        )
    if not 0 <= slice_ < grid.shape[axis]:
        raise ReadError(f"{what} has a contour outside of the image; was it drawn on this series?")
    return axis, slice_


def _joined(masks: list[tuple[np.ndarray, bool]]) -> np.ndarray:
    """One slice of a region: outlines from the largest to the smallest, holes taken out."""
    result = np.zeros_like(masks[0][0])
    for mask, exclusive in sorted(masks, key=lambda pair: -int(pair[0].sum())):
        hole = mask.any() and not (mask & ~result).any()
        if exclusive:
            result ^= mask
        else:
            result = result & ~mask if hole else result | mask
    return result
