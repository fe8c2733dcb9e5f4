"""BIDS: `sub-01/ses-02/anat/sub-01_ses-02_T1w.nii.gz`, participants.tsv, masks of a derivative.

Gorgolewski et al., Scientific Data 3:160044 (2016), bids-specification.readthedocs.io. Entities, datatype and
suffix come from names alone: the JSON sidecars, which may hold dates, names and device numbers, are never
opened, and of participants.tsv only columns on a list of harmless ones pass, or those that the options name.
A session is a study. Masks are matched by their entities (see masks_of.py for how). Costs 10 us a file.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import CollectionError, ConfigError, nearest
from ..sample import Modality, Record
from .base import Progress, Refusal, Source, counted, has_suffix, parse_split, readable, walk
from .bids_masks import Masks
from .bids_names import Name, parse_name
from .table import plain_value, read_table

logger = logging.getLogger(__name__)

DATATYPES: dict[str, Modality] = {
    "anat": Modality.MRI, "func": Modality.FMRI, "dwi": Modality.DMRI, "perf": Modality.MRI,
    "fmap": Modality.MRI, "pet": Modality.PET, "micr": Modality.MICROSCOPY, "ct": Modality.CT,
}  # fmt: skip
_SUFFIXES = {"CT": Modality.CT, "uCT": Modality.CT, "TEM": Modality.EM, "SEM": Modality.EM}

_KINDS = (".nii", ".nii.gz")
_MICROSCOPY = (*_KINDS, ".ome.tif", ".ome.tiff", ".tif", ".tiff", ".png")
_NO_PICTURES = {"mask", "defacemask", "dseg", "probseg"}  # suffixes of masks among the images
_PARTS = {"phase", "real", "imag"}  # of complex images; the magnitude is kept

# Columns of participants.tsv that pass without being named.
HARMLESS = ("age", "sex", "group", "handedness", "species", "strain")
_IDENTIFYING = re.compile(
    "address|birth|birthdate|birthday|city|date|dob|email|firstname|id|initials|lastname|mail|mrn|name|phone|"
    "postcode|ssn|street|surname|zip|zipcode"
)


@dataclass
class Options:
    """Keys of `options` in a source of layout bids."""

    datatypes: list[str] = field(default_factory=list)  # folders; empty: all but fmap
    suffixes: list[str] = field(default_factory=list)  # e.g. T1w; empty: all
    masks: str | None = None  # folder of a derivative with label maps, e.g. derivatives/labels
    mask_suffixes: list[str] = field(default_factory=lambda: ["dseg", "mask", "seg"])
    mask_entities: dict[str, str] = field(default_factory=dict)  # that a mask must have, e.g. {desc: manual}
    mask_of: str | None = None  # suffix of the images whose masks do not say of which they are
    labels: list[str] | None = None  # columns of participants.tsv; null: the harmless ones
    label: str | None = None  # column that becomes labels["class"]
    split: str | None = None  # column with train / val / test

    def __post_init__(self) -> None:
        for word in self.datatypes:
            if word not in DATATYPES:
                raise ConfigError(f"datatypes: unknown {word!r}{nearest(word, set(DATATYPES))}")
        for column in [*(self.labels or []), *([self.label] if self.label else [])]:
            words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", column)
            if any(_IDENTIFYING.fullmatch(word.lower()) for word in words):
                raise ConfigError(
                    f"labels: column {column!r} may identify a person; leave it out or rename it"
                )


def describe(source: Source) -> Source:
    """Take the licence from dataset_description.json where the collection states none."""
    path = source.root / "dataset_description.json"
    if source.licence != "unknown" or not path.is_file():
        return source
    try:
        said = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise CollectionError(f"{path}: cannot be read as JSON: {error}") from error
    licence = said.get("License") if isinstance(said, dict) else None
    named = isinstance(licence, str) and 0 < len(licence.strip()) <= 80
    return replace(source, licence=str(licence).strip()) if named else source


def scan(
    root: Path, source: Source, options: Options, progress: Progress | None = None
) -> Iterator[Record | Refusal]:
    """Yield a Record per image of the subjects' folders, in the order of names.

    Raises:
        CollectionError: no folder sub-*, a column that participants.tsv has not, no folder of masks.
    """
    people = _people(root, options)
    left_out: Counter[str] = Counter()
    images: list[tuple[Name, Path] | Refusal] = []
    for name, path in counted(list(_files(root, options)), f"{source.dataset} names", progress):
        try:
            parsed = parse_name(name)
        except CollectionError as error:
            images.append(Refusal(name, path, str(error)))
            continue
        why = _why_not(parsed, options)
        if why:
            left_out[why] += 1
        else:
            images.append((parsed, path))
    masks = Masks(root, options, [image[0] for image in images if not isinstance(image, Refusal)])
    for image in counted(images, source.dataset, progress):
        if isinstance(image, Refusal):
            yield image
            continue
        parsed, path = image
        try:
            if reason := readable(path):
                raise CollectionError(reason)
            labels, split = people.get(parsed.entities["sub"], ({}, None))
            session = parsed.entities.get("ses")
            yield Record(
                dataset=source.dataset,
                name=parsed.path,
                subject=parsed.entities["sub"],
                paths=(path,),
                modality=source.modality or _SUFFIXES.get(parsed.suffix, DATATYPES[parsed.datatype]),
                organ=source.organ,
                licence=source.licence,
                study=f"sub-{parsed.entities['sub']} ses-{session}" if session else None,
                split=split,
                labels=labels,
                mask=masks.of(parsed),
            )
        except CollectionError as error:
            yield Refusal(parsed.path, path, str(error))
    if left_out:
        listing = ", ".join(f"{count} {why}" for why, count in left_out.most_common(12))
        logger.info("%s: files left out: %s", source.dataset, listing)


def _files(root: Path, options: Options) -> Iterator[tuple[str, Path]]:
    """Image files of the datatypes that are wanted, in the folders of the subjects."""
    subjects = sorted(entry for entry in root.iterdir() if entry.name.startswith("sub-") and entry.is_dir())
    if not subjects:
        raise CollectionError(
            f"{root}: no folder sub-*; layout bids expects e.g. sub-01/anat/sub-01_T1w.nii.gz"
        )
    wanted = set(options.datatypes or DATATYPES.keys() - {"fmap"})
    for subject in subjects:
        for inner, path in walk(subject):
            datatype = inner.rpartition("/")[0].rpartition("/")[2]
            if datatype in wanted and has_suffix(inner, _MICROSCOPY if datatype == "micr" else _KINDS):
                yield f"{subject.name}/{inner}", path


def _why_not(name: Name, options: Options) -> str | None:
    if options.suffixes and name.suffix not in options.suffixes:
        return f"of suffix {name.suffix}"
    if name.suffix in _NO_PICTURES:
        return f"masks ({name.suffix})"
    if name.entities.get("part") in _PARTS:
        return f"of part-{name.entities['part']}"
    return None


def _people(root: Path, options: Options) -> dict[str, tuple[dict[str, Any], str | None]]:
    """(labels, split) of every participant, from the columns that may pass."""
    table = root / "participants.tsv"
    named = [*(options.labels or []), *(column for column in (options.label, options.split) if column)]
    if not table.is_file():
        if named:
            raise CollectionError(f"{table}: missing; options name its columns {', '.join(named)}")
        return {}
    kept = list(HARMLESS) if options.labels is None else options.labels
    columns, rows = read_table(table, {"participant_id", *kept, *named})
    for column in ("participant_id", *named):
        if column not in columns:
            raise CollectionError(f"{table}: no column {column!r}{nearest(column, set(columns))}")
    people = {}
    for row in rows:
        labels = {column: value for column in kept if (value := _value(row.get(column))) is not None}
        if options.label and (value := _value(row.get(options.label))) is not None:
            labels["class"] = str(value)
        try:
            split = _value(row.get(options.split)) if options.split else None
            people[str(row["participant_id"]).strip().removeprefix("sub-")] = (
                labels, None if split is None else parse_split(str(split)),
            )  # fmt: skip
        except CollectionError as error:
            raise CollectionError(f"{table} line {row['']}: {error}") from error
    return people


def _value(cell: Any) -> Any:
    """A JSON value; None for an empty cell and for BIDS's n/a."""
    value = plain_value(cell)
    return None if isinstance(value, str) and value.lower() in ("n/a", "na") else value
