"""What several annotators said of the images of a dataset, side by side: labels, masks, marks.

From a collection the masks themselves are read and compared, and every mask that does not fit its image is
found; from shards, where an annotator's own mask is not kept, the Dice values that ingest measured are
taken, and not one pixel is read. Annotators and images are named by their salted keys.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ..collection import Collection, scan
from ..errors import MedloomError, ShardError
from ..ingest.ingest import reason_of, scrub, secrets_of
from ..layouts.base import Source
from ..privacy import key_of
from ..readers import each
from ..sample import Record, Shape
from ..shards.parallel import run_each
from ..shards.reader import Shards
from .kinds import LabelKind, parse_kinds, tidy_labels
from .marks import compare_marks
from .readings import annotations_of, annotator_key, annotators_of, mask_paths
from .shapes import from_meta

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
# (mask a, mask b, spacing in mm or None, {value: name}) -> {name: {metric: value}}; metrics include "dice"
Compare = Callable[
    [np.ndarray, np.ndarray, Sequence[float] | None, dict[int, str]], dict[str, dict[str, float]]
]


@dataclass(slots=True)
class Case:
    """One image that several annotators read."""

    key: str
    said: dict[str, dict[str, Any]] = field(default_factory=dict)  # annotator -> labels
    overlaps: list[dict[str, Any]] = field(default_factory=list)  # {"a", "b", "structure", "dice", ...}
    marks: list[dict[str, Any]] = field(default_factory=list)  # {"a", "b", "kind", "label", ...}
    unit: str = "mm"  # of distances; "pixels" without spacing


@dataclass(slots=True)
class Survey:
    """All such images of one dataset."""

    dataset: str
    kinds: dict[str, LabelKind]
    images: int  # in all
    cases: list[Case] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)  # (key, why its annotations do not fit)
    checked: int = 0  # images whose masks and shapes were read


Job = tuple[Source, Record]


def survey_collection(
    collection: Collection,
    compare: Compare,
    *,
    every_mask: bool = False,
    limit: int | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> tuple[list[Survey], dict[str, Job]]:
    """Read the annotations of a collection, held-out images too.

    Args:
        every_mask: check also that the masks and shapes of images with one annotator fit.
        limit: of each dataset, compare the masks of at most so many images, evenly spaced.
        progress: called with (images done, all, "compare | dataset").

    Returns:
        A Survey for each dataset that has something to tell, and the record of each case by its key.
    """
    found = scan(collection, progress)
    salt = collection.salt
    surveys, jobs, records = [], [], {}
    for source in collection.sources:
        mine = [r for s, r in (*found.records, *found.held_out) if s.dataset == source.dataset]
        survey = Survey(source.dataset, source.label_kinds, len(mine))
        several = [r for r in mine if len({*annotators_of(r)}) > 1]
        survey.cases = [_said(source, record, salt) for record in several]
        records |= {case.key: (source, r) for case, r in zip(survey.cases, several, strict=True)}
        marked = [r for r in (mine if every_mask else several) if r.shapes or any(mask_paths(r))]
        jobs += [(source, record) for record in _spaced(sorted(marked, key=lambda r: r.name), limit)]
        surveys.append(survey)
    by_dataset = {survey.dataset: survey for survey in surveys}
    cases = {case.key: case for survey in surveys for case in survey.cases}
    for done, (number, read) in enumerate(
        run_each(partial(_measured, salt, compare), jobs, workers=workers), 1
    ):
        source, record = jobs[number]
        survey, key = by_dataset[source.dataset], key_of(salt, source.dataset, record.name)
        survey.checked += 1
        if isinstance(read, ShardError | str):
            reason = scrub(str(read), secrets_of(source, record))
            log.warning("%s: %s", key, reason)
            survey.faults.append((key, reason))
        elif key in cases:
            cases[key].overlaps, cases[key].marks, cases[key].unit = read
        if progress:
            progress(done, len(jobs), f"compare | {source.dataset}")
    for survey in surveys:
        survey.faults.sort()
    return [s for s in surveys if s.cases or s.faults or s.checked], records


def survey_shards(shards: Shards, progress: Progress | None = None) -> list[Survey]:
    """What the metadata of shards tells: labels, Dice of masks as measured at ingest, marks."""
    surveys: dict[str, Survey] = {}
    total, done = shards.manifest.count, 0
    for source in shards.manifest.sources:
        kinds = parse_kinds(source.label_kinds, f"manifest: {source.id}")
        survey = surveys.setdefault(source.dataset, Survey(source.dataset, kinds, 0))
        for ref in shards.refs(source.id):
            meta = shards.meta(ref)
            survey.images += 1
            done += 1
            case = _case_of(meta)
            if len(case.said) > 1:
                survey.cases.append(case)
            if progress and (done % 256 == 0 or done == total):
                progress(done, total, f"read metadata | {source.id}")
    return [survey for survey in surveys.values() if survey.cases]


def pairs_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """Every two of some annotators, in their order."""
    return list(itertools.combinations(sorted(names), 2))


def _said(source: Source, record: Record, salt: bytes) -> Case:
    case = Case(key_of(salt, record.dataset, record.name))
    for annotator in dict.fromkeys(annotators_of(record)):
        case.said[annotator_key(salt, record.dataset, annotator)] = {}
    for reading in record.readings:
        labels = tidy_labels(reading.labels, source.label_kinds)  # the scan has checked them
        case.said[annotator_key(salt, record.dataset, reading.annotator)] |= labels
    return case


def _measured(salt: bytes, compare: Compare, job: Job) -> tuple[list, list, str] | str:
    """Overlaps, marks and the unit of distances of one image; a text says why they cannot be had."""
    source, record = job
    try:
        image = next(iter(each(record.paths, fourth_axis=source.fourth_axis, given=record.given)))
        found = annotations_of(replace(source, consensus=None), record, image)
    except (MedloomError, StopIteration) as error:
        return reason_of(error)
    keys = {name: annotator_key(salt, record.dataset, name) for name in annotators_of(record)}
    masks = {keys[name]: mask for name, mask in found.masks.items()}
    names = source.mask_classes or {int(v): str(v) for mask in masks.values() for v in np.unique(mask) if v}
    overlaps = [
        {"a": a, "b": b, "structure": structure, **values}
        for a, b in pairs_of(list(masks))
        for structure, values in compare(masks[a], masks[b], image.spacing, names).items()
    ]
    shapes: dict[str, list[Shape]] = {}
    for shape in found.shapes:
        if shape.annotator is not None:
            shapes.setdefault(keys[shape.annotator], []).append(shape)
    unit = "mm" if image.spacing is not None else "pixels"
    return overlaps, _marks(shapes, list(keys.values()), image.spacing), unit


def _marks(
    shapes: dict[str, list[Shape]], annotators: Sequence[str], spacing: Sequence[float] | None
) -> list[dict[str, Any]]:
    return [
        {"a": a, "b": b, **row}
        for a, b in pairs_of(list({*annotators}))
        for row in compare_marks(shapes.get(a, []), shapes.get(b, []), spacing)
    ]


def _case_of(meta: dict[str, Any]) -> Case:
    """From `key.json`; shards before format 3 have no readings."""
    readings, shapes = meta.get("readings") or [], meta.get("shapes") or []
    case = Case(meta["key"], unit="mm" if meta["spacing"] else "pixels")
    case.said = {reading["annotator"]: reading["labels"] for reading in readings}
    marked: dict[str, list[Shape]] = {}
    for shape in shapes:
        if shape["annotator"] is not None:
            case.said.setdefault(shape["annotator"], {})
            marked.setdefault(shape["annotator"], []).append(from_meta(shape))
    names = (meta["mask"] or {}).get("classes", {})
    for reading in readings:
        for other, by_value in ((reading["mask"] or {}).get("dice") or {}).items():
            if other != "mask" and reading["annotator"] < other:
                case.overlaps += [
                    {
                        "a": reading["annotator"],
                        "b": other,
                        "structure": names.get(value, value),
                        "dice": dice,
                    }
                    for value, dice in by_value.items()
                ]
    case.marks = _marks(marked, list(case.said), meta["spacing"])
    return case


def _spaced(records: list[Record], limit: int | None) -> list[Record]:
    if limit is None or len(records) <= limit:
        return records
    return [records[index * len(records) // limit] for index in range(limit)]
