"""Records as plain values for JSON and CSV, each with its basis and its terms, so that no view loses them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from .graph import Relative
from .licences import Terms, terms
from .records import Dataset


def plain(dataset: Dataset) -> dict[str, Any]:
    """JSON values of a dataset: its fields, `basis` (read, partly recalled, recalled, own) and `terms`."""
    values = {field.name: getattr(dataset, field.name) for field in fields(dataset)}
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return values | {"basis": dataset.basis.value, "terms": terms(dataset.licence).words}


def plain_relative(relative: Relative) -> dict[str, Any]:
    """JSON values of a relative, each step with its evidence."""
    steps = [
        {"a": step.a, "relation": step.relation.value, "b": step.b, "evidence_url": step.evidence_url,
         "basis": step.basis.value}
        for step in relative.path
    ]  # fmt: skip
    return {"id": relative.id, "level": relative.level.value, "basis": relative.basis.value, "path": steps}


def plain_terms(found: Terms) -> dict[str, bool | None]:
    """JSON values of terms; null is unknown."""
    return {field.name: getattr(found, field.name) for field in fields(found)}


def flat(values: dict[str, Any]) -> dict[str, str]:
    """Text cells of plain values for CSV: lists joined by `;`, None empty."""
    return {
        name: ";".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
        for name, value in values.items()
    }
