"""What a label is: one class of several, several at once, an ordered grade, or a number.

A source declares it in the collection's YAML, by a word or with particulars:

    label_kinds:
      class: single
      findings: {kind: multi-label, separator: "|"}
      grade: {kind: ordinal, order: [none, mild, moderate, severe]}
      age: {kind: value, unit: years}

Labels are checked against it at the scan and stored in one form (`tidy_labels`): a task that reads the
manifest knows what to predict, and agreement which coefficient fits. A label that is not declared is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import CollectionError, ConfigError, nearest
from .quasi import without_quasi_identifiers

KINDS = ("single", "multi-label", "ordinal", "value")

_KEYS = {
    "single": {"values"},
    "multi-label": {"values", "separator"},
    "ordinal": {"order"},
    "value": {"unit"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelKind:
    """The declaration of one label."""

    kind: str = "single"  # one of KINDS
    values: tuple[Any, ...] = ()  # of ordinal: from lowest to highest; else empty means any
    unit: str | None = None  # of value
    separator: str | None = None  # of multi-label: between the names in one text

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values for the manifest: `{"kind": "ordinal", "order": [0, 1, 2]}`."""
        said: dict[str, Any] = {"kind": self.kind}
        if self.values:
            said["order" if self.kind == "ordinal" else "values"] = list(self.values)
        return said | ({"unit": self.unit} if self.unit else {})


def parse_kinds(said: Mapping[str, Any], where: str) -> dict[str, LabelKind]:
    """`label_kinds` of a source, checked.

    Raises:
        ConfigError: an unknown kind or key, an ordinal label without its order, a value twice.
    """
    return {str(label): _parse(what, f"{where}.{label}") for label, what in said.items()}


def _parse(said: Any, where: str) -> LabelKind:
    given = {"kind": said} if isinstance(said, str) else said
    if not isinstance(given, Mapping) or not isinstance(given.get("kind"), str):
        raise ConfigError(
            f"{where}: expected one of {', '.join(KINDS)}, or {{kind: ..., ...}}, found {said!r}"
        )
    kind = given["kind"]
    if kind not in KINDS:
        raise ConfigError(f"{where}: unknown kind {kind!r}{nearest(kind, KINDS)}")
    for key in given:
        if key not in {"kind", *_KEYS[kind]}:
            raise ConfigError(
                f"{where}: unknown key {key!r} of {kind}{nearest(str(key), {'kind', *_KEYS[kind]})}"
            )
    values = given.get("order" if kind == "ordinal" else "values") or ()
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ConfigError(f"{where}: expected a list of values, found {values!r}")
    if kind == "ordinal" and len(values) < 2:
        raise ConfigError(f"{where}: an ordinal label needs its order; write order: [lowest, ..., highest]")
    if len({str(value) for value in values}) != len(values):
        raise ConfigError(f"{where}: a value is listed twice in {list(values)}")
    unit, separator = given.get("unit"), given.get("separator")
    return LabelKind(kind=kind, values=tuple(values), unit=unit, separator=separator)


def tidy_labels(labels: Mapping[str, Any], kinds: Mapping[str, LabelKind]) -> dict[str, Any]:
    """Labels in the form in which they are stored; ages above 89 and dates as docs/privacy.md says.

    single and ordinal: the declared value; multi-label: a list of names, in the declared or alphabetic order,
    empty when none applies; value: a float. A label that is None is not known, and left out.

    Raises:
        CollectionError: a value that the declaration does not allow, or a date.
    """
    units = {name: kind.unit for name, kind in kinds.items() if kind.unit}
    known = {name: value for name, value in labels.items() if value is not None}
    said = without_quasi_identifiers(known, units)
    return {name: _tidy(name, value, kinds[name]) if name in kinds else value for name, value in said.items()}


def _tidy(name: str, value: Any, kind: LabelKind) -> Any:
    if kind.kind == "multi-label":
        return _several(name, value, kind)
    if kind.kind == "value":
        return _number(name, value)
    if isinstance(value, list | tuple | set | dict):
        raise CollectionError(f"label {name}: {value!r} for one {kind.kind} value; declare it multi-label")
    return _declared(name, value, kind) if kind.values else value


def _several(name: str, value: Any, kind: LabelKind) -> list[Any]:
    if isinstance(value, Mapping):
        value = [one for one, applies in value.items() if applies]
    elif isinstance(value, str) and kind.separator:
        value = [one.strip() for one in value.split(kind.separator) if one.strip()]
    elif not isinstance(value, list | tuple | set | frozenset):
        value = [value]
    if not kind.values:
        return sorted(set(value), key=str)
    found = {_declared(name, one, kind) for one in value}
    return [one for one in kind.values if one in found]


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise CollectionError(
            f"label {name}: {value!r} is not a number, as its kind `value` says; mend the table"
        )
    return number


def _declared(name: str, value: Any, kind: LabelKind) -> Any:
    """The declared value that is written like `value`; 1, 1.0 and "1" are the same."""
    for one in kind.values:
        if str(one) == str(value) or _equal(one, value):
            return one
    hint = nearest(str(value), [str(one) for one in kind.values])
    raise CollectionError(f"label {name}: {value!r} is not among its declared values{hint}")


def _equal(a: Any, b: Any) -> bool:
    try:
        return float(a) == float(b)
    except (TypeError, ValueError):
        return False
