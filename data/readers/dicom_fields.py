"""Fields of a DICOM dataset as plain, checked values: absent, empty and malformed all read as None.

Also what may leave a file: the allow-list FACTS holds coded or numeric technical facts; free text
(descriptions, protocol names) may name a person and stays.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pydicom.multival import MultiValue

from ..errors import CollectionError
from ..sample import Modality, parse_modality

FACTS = (
    "Manufacturer", "ManufacturerModelName", "BodyPartExamined", "SliceThickness", "SpacingBetweenSlices",
    "KVP", "ConvolutionKernel", "MagneticFieldStrength", "RepetitionTime", "EchoTime", "InversionTime",
    "FlipAngle", "ScanningSequence", "MRAcquisitionType", "ViewPosition", "ImageLaterality", "Laterality",
    "BitsStored", "PhotometricInterpretation", "LossyImageCompression", "BurnedInAnnotation", "Units",
)  # fmt: skip

_MODALITIES = {
    "IO": Modality.XRAY, "PX": Modality.XRAY, "RG": Modality.XRAY, "IVUS": Modality.ULTRASOUND,
    "IVOCT": Modality.OCT, "OPTENF": Modality.OCTA,
}  # fmt: skip
_TOMOSYNTHESIS = "1.2.840.10008.5.1.4.1.1.13.1.3"
_CENTIMETRES = 3  # Physical Units of an ultrasound region, DICOM PS3.3 C.8.5.5


def text(dataset: Any, key: str) -> str:
    """The field as stripped text, "" when absent; of several values the first."""
    value = dataset.get(key)
    if isinstance(value, MultiValue):
        value = value[0] if len(value) else None
    return "" if value is None else str(value).strip()


def numbers(dataset: Any, key: str, count: int) -> tuple[float, ...] | None:
    """The field as exactly `count` finite numbers, or None."""
    value = dataset.get(key)
    if value is None or value == "":
        return None
    items = list(value) if isinstance(value, list | tuple | MultiValue) else [value]
    try:
        result = tuple(float(item) for item in items)
    except (TypeError, ValueError):
        return None
    return result if len(result) == count and all(map(math.isfinite, result)) else None


def integer(dataset: Any, key: str) -> int | None:
    """The field as an integer, or None."""
    value = numbers(dataset, key, 1)
    return int(value[0]) if value else None


def positive(dataset: Any, key: str) -> float | None:
    """The field as one number above 0 (the sign dropped: some vendors write negative gaps), or None."""
    value = numbers(dataset, key, 1)
    return abs(value[0]) if value and value[0] != 0 else None


def vector(dataset: Any, key: str, count: int) -> np.ndarray | None:
    """The field as a vector of `count` numbers, or None."""
    value = numbers(dataset, key, count)
    return np.array(value) if value else None


def pair(dataset: Any, key: str) -> tuple[float, float] | None:
    """The field as two numbers above 0, or None."""
    value = numbers(dataset, key, 2)
    return (value[0], value[1]) if value and min(value) > 0 else None


def pixel_spacing(dataset: Any) -> tuple[float, float] | None:
    """Millimetres between rows and between columns, or None.

    In the patient where known; else on the detector (projections) or from the calibrated ultrasound region,
    when the object has one calibration only.
    """
    for key in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        found = pair(dataset, key)
        if found:
            return found
    regions = set()
    for region in dataset.get("SequenceOfUltrasoundRegions") or []:
        units = (integer(region, "PhysicalUnitsXDirection"), integer(region, "PhysicalUnitsYDirection"))
        across, down = positive(region, "PhysicalDeltaX"), positive(region, "PhysicalDeltaY")
        if units == (_CENTIMETRES, _CENTIMETRES) and across and down:
            regions.add((round(10 * down, 6), round(10 * across, 6)))
    return regions.pop() if len(regions) == 1 else None


def modality(dataset: Any) -> Modality | None:
    """The object's modality in the catalogue's vocabulary, or None when it has no word for it."""
    if text(dataset, "SOPClassUID") == _TOMOSYNTHESIS:
        return Modality.DBT
    code = text(dataset, "Modality").upper()
    if code in _MODALITIES:
        return _MODALITIES[code]
    try:
        return parse_modality(code)
    except CollectionError:
        return None


def facts(dataset: Any) -> dict[str, Any]:
    """Allow-listed technical facts as plain JSON values."""
    found: dict[str, Any] = {}
    for key in FACTS:
        number = numbers(dataset, key, 1)
        value = text(dataset, key)[:64]
        if value:
            found[key] = number[0] if number else value
    return found


def line(error: BaseException) -> str:
    """A third-party error's message on one short line."""
    return " ".join(str(error).split())[:160] or type(error).__name__
