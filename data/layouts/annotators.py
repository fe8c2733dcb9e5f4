"""Rows of several annotators about one image -> one Record with a Reading each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ..sample import Reading, Record
from .base import Refusal


def one_record_each(items: Iterable[tuple[Record | Refusal, str]]) -> Iterator[Record | Refusal]:
    """Join the records of one name; in the order in which the names first occur.

    A row of an annotator gives a Reading; a row without one gives the record's own labels and mask. Rows that
    disagree on subject, study or split refuse the image, as do two rows by one annotator.

    Args:
        items: what a row would be alone, and its annotator ("": none).
    """
    groups: dict[str, list[tuple[Record, str]]] = {}
    for item, annotator in items:
        if isinstance(item, Refusal):
            yield item
        else:
            groups.setdefault(item.name, []).append((item, annotator))
    for rows in groups.values():
        yield _joined(rows)


def _joined(rows: list[tuple[Record, str]]) -> Record | Refusal:
    first = rows[0][0]
    for field in ("subject", "study", "split", "modality", "organ"):
        if len({getattr(record, field) for record, _ in rows}) > 1:
            return Refusal(first.name, first.paths[0], f"its rows disagree on its {field}; mend the table")
    annotators = [annotator for _, annotator in rows]
    if len(set(annotators)) < len(annotators):
        return Refusal(first.name, first.paths[0], "two rows by one annotator; keep one, or name them apart")
    own = next((record for record, annotator in rows if not annotator), None)
    readings = tuple(
        Reading(annotator=annotator, labels=record.labels, mask=record.mask)
        for record, annotator in rows
        if annotator
    )
    return replace(first, labels=own.labels if own else {}, mask=own.mask if own else None, readings=readings)
