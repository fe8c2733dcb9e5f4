"""DICOM files -> Image: series of slices, multi-frame objects, single pictures; any syntax pydicom decodes.

A series becomes one closest-canonical volume (dicom_series.py); frames without positions (ultrasound loops,
angiography) become one 2D picture each, in the orientation in which they are displayed. Values are rescaled
(CT comes out as int16 HU), MONOCHROME1 is inverted, windows are not applied.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ..errors import ReadError
from ..sample import Given, Image
from . import dicom_fields as fields
from . import dicom_loop, geometry, messages, values
from .dicom_facts import facts_of
from .dicom_planes import is_loop, planes_of
from .dicom_series import picture, stack, stack_by_number
from .source import check_fourth_axis, content

SUFFIXES = (".dcm", ".dicom", ".ima")

NOT_PICTURES = {"SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "REG", "ECG", "DOC"}
# Pictures of one series that belong side by side, not on top of each other, when they have no position.
_STACKED = {"CT", "MR", "PT"}

_HEADER_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "Modality", "Rows",
    "Columns", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "InstanceNumber",
    "ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Header:
    """What a layout needs to group files; nothing of it is written anywhere unhashed."""

    path: Path
    sop_class_uid: str
    sop_uid: str
    series_uid: str
    study_uid: str
    subject: str  # PatientID as in the file: identifies a person
    modality: str  # DICOM's own code, such as "CT"
    rows: int
    cols: int
    frames: int
    position: tuple[float, ...] | None  # LPS mm
    orientation: tuple[float, ...] | None
    instance_number: int | None
    references: tuple[str, ...] = ()  # series that a segmentation or structure set was drawn on

    @property
    def is_image(self) -> bool:
        """Whether the object is a picture: it has pixels and is no segmentation, dose, report or plan."""
        return self.rows > 0 and self.cols > 0 and self.modality not in NOT_PICTURES

    @property
    def is_empty(self) -> bool:
        """Whether the class is one of images and there are no rows or columns: the file is cut short."""
        images = UID(self.sop_class_uid).name.endswith("Image Storage")
        return images and self.modality not in NOT_PICTURES and not self.is_image


def matches(head: bytes) -> bool:
    """Whether the first 512 bytes of a file carry DICOM's preamble."""
    return head[128:132] == b"DICM"


def header(path: Path) -> Header:
    """Read the identifying header fields of one file, without its pixels (about 1 ms).

    Raises:
        ReadError: empty, missing, or not DICOM. Reports and plans pass: see `Header.is_image`.
    """
    try:
        if path.stat().st_size == 0:
            content(path)
        with fields.quiet():
            dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=_HEADER_TAGS)
            _require_dicom(dataset, path.name)
            return Header(
                path=path,
                sop_class_uid=fields.text(dataset, "SOPClassUID"),
                sop_uid=fields.text(dataset, "SOPInstanceUID"),
                series_uid=fields.text(dataset, "SeriesInstanceUID"),
                study_uid=fields.text(dataset, "StudyInstanceUID"),
                subject=fields.text(dataset, "PatientID"),
                modality=fields.text(dataset, "Modality").upper(),
                rows=fields.count(dataset, "Rows"),
                cols=fields.count(dataset, "Columns"),
                frames=fields.count(dataset, "NumberOfFrames") or 1,
                position=fields.numbers(dataset, "ImagePositionPatient", 3),
                orientation=fields.numbers(dataset, "ImageOrientationPatient", 6),
                instance_number=fields.integer(dataset, "InstanceNumber"),
                references=_references(dataset),
            )
    except (ReadError, MemoryError):
        raise
    except FileNotFoundError:
        raise ReadError(f"{path.name}: no such file; check the path in the collection") from None
    except Exception as error:  # pydicom raises many kinds on damaged data
        raise ReadError(
            f"{path.name}: DICOM header cannot be read ({messages.line(error, content(path))}); copy it again"
        ) from error


def _references(dataset: Any) -> tuple[str, ...]:
    """Series that a SEG (directly) or RTSTRUCT (by frame of reference and study) names, each once."""
    holders = [dataset]
    for frame in fields.items(dataset, "ReferencedFrameOfReferenceSequence"):
        holders += fields.items(frame, "RTReferencedStudySequence")
    series = [
        fields.text(item, "SeriesInstanceUID")
        for holder in holders
        for key in ("ReferencedSeriesSequence", "RTReferencedSeriesSequence")
        for item in fields.items(holder, key)
    ]
    return tuple(dict.fromkeys(filter(None, series)))


def read(
    paths: Sequence[Path], *, fourth_axis: str = "channels", given: Given | None = None
) -> Iterator[Image]:
    """Read one DICOM file, or the files of one series in any order.

    Args:
        paths: at least one; the same object twice (equal SOP instance UID) counts once.
        fourth_axis: for a stack taken many times: "channels" makes [C, D, H, W], "frames" one Image a time.
        given: of a loop, `every` seconds a frame and `most` frames; `crop` to the ultrasound regions.

    Yields:
        One volume [C, D, H, W] for slices with positions; else 2D pictures [C, H, W], one a file or frame,
        those of a loop decoded one at a time.

    Raises:
        ReadError: not DICOM, no pixels, undecodable, or a series that is not one regular stack: two series or
            orientations mixed, differing shapes, a missing slice (a gap more than 10 % off the median).
    """
    check_fourth_axis(fourth_axis)
    if not paths:
        raise ReadError("no DICOM file given, expected at least one")
    with fields.quiet():
        datasets = _one_series([(path.name, _open(path)) for path in paths])
    name, first = datasets[0]
    if len(datasets) == 1 and (dicom_loop.is_film(first) or is_loop(first)):
        facts = {"format": "dicom", **facts_of([first])}
        for image in dicom_loop.frames(name, first, given or Given()):
            yield _finished(image, first, facts, name)
        return
    crop = given is not None and given.crop
    del first
    with fields.quiet():
        images = _read(datasets, fourth_axis, crop)
    yield from images


def _read(datasets: list[tuple[str, Any]], fourth_axis: str, crop: bool) -> list[Image]:
    name, first = datasets[0]
    planes = [plane for item_name, dataset in datasets for plane in planes_of(item_name, dataset)]
    facts = {"format": "dicom", **facts_of([dataset for _, dataset in datasets])}
    one_each = len(datasets) == len(planes)
    datasets.clear()  # the files' bytes, before the planes are stacked
    if len(planes) > 1 and all(p.position is not None and p.orientation is not None for p in planes):
        volumes, affine = stack(planes)
        geometry.check_affine(affine, name)
        images = _volumes(volumes, affine, fourth_axis)
    elif len(planes) > 1 and one_each and fields.text(first, "Modality") in _STACKED:
        images = [stack_by_number(planes)]
    else:
        images = [picture(plane) for plane in sorted(planes, key=lambda plane: plane.order)]
        images = [dicom_loop.shown(image, first, name, crop) for image in images]
    if len(images) > 1:
        for index, image in enumerate(images):
            image.facts |= {"frame": index, "frames": len(images)}
    return [_finished(image, first, facts, name) for image in images]


def _finished(image: Image, dataset: Any, facts: dict[str, Any], name: str) -> Image:
    """Add what is the same for all images of the object: modality, facts, mended values."""
    image.array, mended = values.finite(np.ascontiguousarray(image.array), name)
    image.modality = fields.modality(dataset)
    image.facts = {**facts, **image.facts, **mended}
    return image


def _volumes(volumes: list[np.ndarray], affine: np.ndarray, fourth_axis: str) -> list[Image]:
    if volumes[0].shape[1] == 1:
        # All planes at one position: a cine loop, 2D + t.
        return [
            Image(array=volume[:, 0], spacing=geometry.spacing_of(affine)[1:], affine=affine)
            for volume in volumes
        ]
    codes = geometry.axis_codes(affine)
    if fourth_axis == "channels":
        volumes = [np.concatenate(volumes)]
    images = []
    for volume in volumes:
        array, turned, _ = geometry.canonical(volume, affine)
        images.append(
            Image(
                array=array,
                affine=turned,
                spacing=geometry.spacing_of(turned),
                facts={"orientation": codes},
            )
        )
    return images


def _open(path: Path) -> Any:
    data = content(path)
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        _require_dicom(dataset, path.name)
        _supply_syntax(dataset)
    except (ReadError, MemoryError):
        raise
    except Exception as error:  # pydicom raises many kinds on damaged data
        line = messages.line(error, data)
        raise ReadError(f"{path.name}: DICOM cannot be read ({line}); copy it again") from error
    modality = fields.text(dataset, "Modality").upper()
    if modality in NOT_PICTURES or not fields.count(dataset, "Rows") * fields.count(dataset, "Columns"):
        kind = modality if modality in NOT_PICTURES else "object"  # any other word may be a person's
        raise ReadError(f"{path.name}: a DICOM {kind} without a picture, expected an image")
    if "MOSAIC" in (fields.value(dataset, "ImageType") or []):
        raise ReadError(f"{path.name}: a Siemens mosaic of slices; convert it to NIfTI (dcm2niix) first")
    return dataset


def _one_series(items: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Drop repeated objects and refuse two series."""
    seen: dict[str, tuple[str, Any]] = {}
    for index, (name, dataset) in enumerate(items):
        seen.setdefault(fields.text(dataset, "SOPInstanceUID") or f"#{index}", (name, dataset))
    series = {fields.text(dataset, "SeriesInstanceUID"): name for name, dataset in reversed(seen.values())}
    if len(series) > 1:
        names = ", ".join(sorted(series.values())[:3])
        raise ReadError(f"{len(series)} series mixed in one image ({names}), expected 1; group by series")
    return list(seen.values())


def _require_dicom(dataset: Any, name: str) -> None:
    """With force=True pydicom reads any bytes as some dataset: only one with a class is believed."""
    if not fields.text(dataset, "SOPClassUID").startswith("1.2.840.10008."):
        raise ReadError(f"{name}: not a DICOM object (no SOP class); check the file's format")


def _supply_syntax(dataset: Any) -> None:
    """Give a file without meta header the transfer syntax in which pydicom found it written."""
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
