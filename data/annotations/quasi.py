"""Labels that narrow a person down, though they name nobody: ages above 89, and dates.

The rule is that of HIPAA's safe harbour, 45 CFR 164.514(b)(2)(i)(C): "all elements of dates (except year)
directly related to an individual ... and all ages over 89", which may be "aggregated into a single category
of age 90 or older". So an age above 89 years is stored as 90, and a date is refused: whether to keep its year
or to turn it into an age or an interval is the owner's decision.

An age is a label one of whose words is `age`: age, patient_age, AgeAtScan, "Age (years)". DICOM's form (093Y,
018M) is turned into years. A label that is named or declared in months, weeks or days is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import CollectionError

OLDEST = 89  # years; the oldest age that is stored as it is
OLDER = 90  # what stands for every age above

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_SMALL_UNITS = {"month", "months", "week", "weeks", "day", "days", "gestational", "bone"}
_AGE_TEXT = re.compile(
    r"\s*(\d{1,3}(?:\.\d+)?)\s*(y|yr|yrs|years?|m|w|d)?\s*(?:old)?\s*\+?\s*", re.IGNORECASE
)
_PER_YEAR = {"m": 12.0, "w": 365.25 / 7, "d": 365.25}
_DATE = re.compile(
    r"\s*(?:(?:18|19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"  # 20240131, DICOM's
    r"|(?:18|19|20)\d\d[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](?:18|19|20)\d\d)(?:[T ].*)?\s*"
)


def without_quasi_identifiers(labels: Mapping[str, Any], units: Mapping[str, str]) -> dict[str, Any]:
    """Labels with ages above 89 as 90.

    Args:
        units: of the labels that declare one.

    Raises:
        CollectionError: the value of a label is a date.
    """
    result: dict[str, Any] = {}
    for name, value in labels.items():
        if isinstance(value, str | int) and _DATE.fullmatch(str(value)):
            raise CollectionError(
                f"label {name}: holds a date, which narrows a person down; give an age, an interval or a year"
            )
        result[name] = _years(value) if is_age(name, units.get(name, "")) else value
    return result


def is_age(name: str, unit: str = "") -> bool:
    """Whether a label of this name and unit is a person's age in years."""
    words = {word.lower() for word in _WORDS.findall(f"{name} {unit}")}
    return "age" in words and not words & _SMALL_UNITS


def _years(value: Any) -> Any:
    """An age with the oldest under one number; what is not an age stays as it is."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        found = _AGE_TEXT.fullmatch(value)
        if not found:
            return value
        years = float(found[1]) / _PER_YEAR.get((found[2] or "y").lower(), 1.0)
        if years <= OLDEST and not found[2]:
            return value
        value = int(years) if years.is_integer() else round(years, 3)
    return OLDER if isinstance(value, int | float) and value > OLDEST else value
