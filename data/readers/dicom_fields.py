"""Fields of a DICOM dataset as plain, checked values: absent, empty and malformed all read as None."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from pydicom.config import IGNORE, settings
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from ..errors import CollectionError
from ..sample import Modality, parse_modality
from . import messages

_MODALITIES = {
    "IO": Modality.XRAY, "PX": Modality.XRAY, "RG": Modality.XRAY, "IVUS": Modality.ULTRASOUND,
    "IVOCT": Modality.OCT, "OPTENF": Modality.OCTA,
}  # fmt: skip
_TOMOSYNTHESIS = "1.2.840.10008.5.1.4.1.1.13.1.3"
_LONG = 4096  # bytes of a value that are searched for a message's words
_CENTIMETRES = 3  # Physical Units of an ultrasound region, DICOM PS3.3 C.8.5.5


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what decoders say (see messages.py), and let pydicom read malformed values as they are."""
    mode = settings.reading_validation_mode
    settings.reading_validation_mode = IGNORE
    try:
        with messages.quiet():
            yield
    finally:
        settings.reading_validation_mode = mode


def value(dataset: Any, key: str) -> Any:
    """The field as pydicom gives it, None when it is absent or cannot be converted."""
    try:
        return dataset.get(key)
    except Exception:  # damaged representations raise many kinds, at the first access
        return None


def items(dataset: Any, key: str) -> list[Any]:
    """The items of a sequence; none when it is absent or no sequence."""
    found = value(dataset, key)
    return list(found) if isinstance(found, Sequence) else []


def count(dataset: Any, key: str, default: int = 0) -> int:
    """The field as an integer of 0 or more, else `default`."""
    number = integer(dataset, key)
    return default if number is None or number < 0 else number


def text(dataset: Any, key: str) -> str:
    """The field as stripped text, "" when absent; of several values the first."""
    found = value(dataset, key)
    if isinstance(found, MultiValue):
        found = found[0] if len(found) else None
    return "" if found is None else str(found).strip()


def numbers(dataset: Any, key: str, size: int) -> tuple[float, ...] | None:
    """The field as exactly `size` finite numbers, or None."""
    found = value(dataset, key)
    if found is None or found == "":
        return None
    parts = list(found) if isinstance(found, list | tuple | MultiValue) else [found]
    try:
        result = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        return None
    return result if len(result) == size and all(map(math.isfinite, result)) else None


def integer(dataset: Any, key: str) -> int | None:
    """The field as an integer, or None."""
    found = numbers(dataset, key, 1)
    return int(found[0]) if found else None


def positive(dataset: Any, key: str) -> float | None:
    """The field as one number above 0 (the sign dropped: some vendors write negative gaps), or None."""
    found = numbers(dataset, key, 1)
    return abs(found[0]) if found and found[0] != 0 else None


def vector(dataset: Any, key: str, size: int) -> np.ndarray | None:
    """The field as a vector of `size` numbers, or None."""
    found = numbers(dataset, key, size)
    return np.array(found) if found else None


def pair(dataset: Any, key: str) -> tuple[float, float] | None:
    """The field as two numbers above 0, or None."""
    found = numbers(dataset, key, 2)
    return (found[0], found[1]) if found and min(found) > 0 else None


def pixel_spacing(dataset: Any) -> tuple[float, float] | None:
    """Millimetres between rows and between columns, or None.

    In the patient where known; else on the detector (projections) or from the calibrated ultrasound region,
    when the object has one calibration only.
    """
    for key in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        found = pair(dataset, key)
        if found:
            return found
    regions = {region_spacing(region) for region in items(dataset, "SequenceOfUltrasoundRegions")} - {None}
    return regions.pop() if len(regions) == 1 else None


def region_spacing(region: Any) -> tuple[float, float] | None:
    """Millimetres between rows and columns of an ultrasound region; None when an axis is time or velocity."""
    units = (integer(region, "PhysicalUnitsXDirection"), integer(region, "PhysicalUnitsYDirection"))
    across, down = positive(region, "PhysicalDeltaX"), positive(region, "PhysicalDeltaY")
    if units == (_CENTIMETRES, _CENTIMETRES) and across and down:
        return round(10 * down, 6), round(10 * across, 6)
    return None


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


def line(error: BaseException, dataset: Any) -> str:
    """A decoder's message on one short line, without the words that the object itself contains."""
    parts = []
    for holder in filter(None, (getattr(dataset, "file_meta", None), dataset)):
        for tag in list(holder.keys()):
            with contextlib.suppress(Exception):  # damaged values raise many kinds
                found = holder.get_item(tag).value
                parts.append(found[:_LONG] if isinstance(found, bytes) else str(found)[:_LONG].encode())
    return messages.line(error, b"\0".join(parts))
