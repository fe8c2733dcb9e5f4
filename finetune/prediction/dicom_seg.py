"""A label map as a DICOM Segmentation of the series that it was predicted from (highdicom).

The object carries the patient and study of its source, as viewers and archives need it: it is as private as
the images. Structures are coded in the private scheme 99MEDLOOM by their names in the task record, because a
record has no SNOMED codes; category: anatomical structure. Source: DICOM PS3.3 A.51, C.8.20.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...data.atomic import replacing
from ...data.errors import ConfigError, ReadError
from .labelmaps import as_stored

_SAME_POSITION = 0.01  # mm along the normal


def require_highdicom() -> None:
    """Raise ConfigError unless highdicom can be imported."""
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise ConfigError("--dicom-seg needs highdicom: pip install 'medloom[formats]'") from error


def write_segmentation(
    stem: Path,
    labels: np.ndarray,
    meta: Mapping[str, Any],
    paths: Sequence[Path],
    structures: Mapping[int, str],
    task: str,
) -> Path:
    """Write labels [D, H, W] of a series of single-frame slices; returns the .dcm file.

    Args:
        stem: path without suffix.
        meta: `key.json` of the image.
        paths: files of the series, in any order.
        structures: mask value -> name.
        task: name of the record, stated as the algorithm's.

    Raises:
        ReadError: not a series of single-frame slices with one slice a position, or nothing was found.
    """
    from importlib.metadata import version

    import highdicom as hd

    slices = _sorted_slices(paths, labels)
    # (x, y, z) of the file's axes -> frames in the order of the positions, rows, columns
    frames = np.ascontiguousarray(as_stored(labels, meta).transpose())
    present = [value for value in sorted(structures) if (frames == value).any()]
    if not present:
        raise ReadError("no structure was found: a DICOM SEG cannot be empty; leave --dicom-seg out to see")
    numbered = np.zeros_like(frames)
    for number, value in enumerate(present, start=1):
        numbered[frames == value] = number
    found = hd.seg.Segmentation(
        source_images=slices,
        pixel_array=numbered,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=_descriptions([structures[value] for value in present], task),
        series_instance_uid=hd.UID(),
        series_number=9000 + int(getattr(slices[0], "SeriesNumber", None) or 0) % 1000,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="medloom",
        manufacturer_model_name=f"medloom {task}"[:64],
        software_versions=version("medloom"),
        device_serial_number="0",
        series_description=f"medloom {task}"[:64],
    )
    path = stem.with_name(f"{stem.name}.seg.dcm")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        found.save_as(temporary)
    return path


def _sorted_slices(paths: Sequence[Path], labels: np.ndarray) -> list[Any]:
    """The files of the series in the order in which the reader stacked them, without their pixels."""
    import pydicom

    slices = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    if any(int(getattr(one, "NumberOfFrames", None) or 1) > 1 for one in slices):
        raise ReadError("a DICOM SEG is written for series of single-frame slices; leave --dicom-seg out")
    if any("ImagePositionPatient" not in one or "ImageOrientationPatient" not in one for one in slices):
        raise ReadError("slices without position or orientation: leave --dicom-seg out")
    cosines = np.array(slices[0].ImageOrientationPatient, float)
    normal = np.cross(cosines[:3], cosines[3:])
    depth = [float(np.dot(normal, np.array(one.ImagePositionPatient, float))) for one in slices]
    slices = [slices[index] for index in np.argsort(depth, kind="stable")]
    apart = np.diff(sorted(depth)) > _SAME_POSITION
    if not apart.all() or len(slices) != len(np.unique([one.SOPInstanceUID for one in slices])):
        raise ReadError("several images at one position: a DICOM SEG needs one; leave --dicom-seg out")
    if labels.ndim != 3 or labels.size != len(slices) * int(slices[0].Rows) * int(slices[0].Columns):
        raise ReadError("the slices are not the image that was read; leave --dicom-seg out")
    return slices


def _descriptions(names: Sequence[str], task: str) -> list[Any]:
    """What the segments 1, 2, ... are, and who drew them."""
    from importlib.metadata import version

    import highdicom as hd
    from pydicom.sr.codedict import codes

    algorithm = hd.AlgorithmIdentificationSequence(
        name=f"medloom {task}"[:64],
        family=codes.DCM.ArtificialIntelligence,
        version=version("medloom"),
    )
    return [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=_code(name),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(names, start=1)
    ]


def _code(name: str) -> Any:
    from pydicom.sr.coding import Code

    return Code(
        re.sub(r"[^A-Z0-9]+", "_", name.upper())[:16].strip("_") or "STRUCTURE", "99MEDLOOM", name[:64]
    )
