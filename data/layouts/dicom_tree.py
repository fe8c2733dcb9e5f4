"""A tree of DICOM files in any folders: a series is what shares a SeriesInstanceUID, wherever its files lie.

Only slices of a volume are put together: single-frame objects of a tomographic modality that state position
and orientation. Everything else (multi-frame objects, ultrasound, X-ray, photographs) is a Record of its own,
even when many share a series. Whether a series makes one sound volume (spacing, missing slices) is the
reader's verdict, at build time. The price of this layout is one header per file, about 0.5 ms each: 100,000
files take a minute, hence the progress.

Files without DICOM's magic and without a DICOM suffix are left out, and so are reports, plans and, unless
`masks` says that they are wanted, segmentations (counted in the log); broken files are refused.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ..errors import CollectionError, ConfigError, ReadError, nearest
from ..sample import Modality, Record, parse_modality
from .base import Progress, Refusal, Source, as_it_is, counted, has_suffix, kind_of, walk

if TYPE_CHECKING:
    from ..readers.dicom import Header

logger = logging.getLogger(__name__)

_TOMOGRAPHIC = {"CT", "MR", "PT", "NM"}  # DICOM's own words (0008,0060)
_SUBJECTS = ("patient_id", "folder")
_MASKS = {"seg": "SEG", "rtstruct": "RTSTRUCT"}


@dataclass
class Options:
    """Keys of `options` in a source of layout dicom_tree."""

    subject: str = "patient_id"  # or folder: the first folder below the root
    masks: str | None = None  # seg | rtstruct: objects of this kind are the masks of the series they refer to

    def __post_init__(self) -> None:
        if self.masks is not None and self.masks not in _MASKS:
            raise ConfigError(f"masks: unknown {self.masks!r}{nearest(self.masks, set(_MASKS))}")
        if self.subject not in _SUBJECTS:
            raise ConfigError(f"subject: unknown {self.subject!r}{nearest(self.subject, _SUBJECTS)}")


describe = as_it_is  # headers are per series


def scan(
    root: Path, source: Source, options: Options, progress: Progress | None = None
) -> Iterator[Record | Refusal]:
    """Yield a Record per series of slices and per stand-alone object, in the order of names.

    A record's name is its SeriesInstanceUID (a stand-alone object's relative path), so that moving the files
    of a series to other folders keeps its key. Slices of one series with two modalities or two patients are
    refused together.
    """
    from ..readers import dicom, messages  # imports pydicom

    series: dict[str, list[tuple[str, Path, Header]]] = {}
    alone: list[tuple[str, Path, Header]] = []
    found: list[Record | Refusal] = []
    others: Counter[str] = Counter()
    masks: dict[str, list[Path]] = {}
    with messages.quiet():  # once, not for every file
        for name, path in counted(list(_candidates(root, source)), source.dataset, progress):
            try:
                header = dicom.header(path)
            except ReadError as error:
                found.append(Refusal(name, path, str(error)))
                continue
            if options.masks and header.modality == _MASKS[options.masks]:
                for uid in header.references:
                    masks.setdefault(uid, []).append(path)
            elif header.is_empty:
                found.append(
                    Refusal(name, path, "an image without rows and columns; cut short? copy it again")
                )
            elif not header.is_image:
                others[header.modality if header.modality in dicom.NOT_PICTURES else "other"] += 1
            elif is_slice(header):
                series.setdefault(str(header.series_uid), []).append((name, path, header))
            else:
                alone.append((name, path, header))
    if others:
        logger.info(
            "%s: DICOM objects left out, no pictures: %s", source.dataset, dict(sorted(others.items()))
        )
    found += [_record(member[0], [member], source, options, masks) for member in alone]
    found += [_record(uid, members, source, options, masks) for uid, members in series.items()]
    yield from sorted(found, key=lambda item: item.name)


def _candidates(root: Path, source: Source) -> Iterator[tuple[str, Path]]:
    from ..readers import dicom

    ignored: Counter[str] = Counter()
    for name, path in walk(root):
        if path.name == "DICOMDIR":  # an index of other files
            continue
        if has_suffix(name, dicom.SUFFIXES) or _has_magic(path):
            yield name, path
        else:
            ignored[kind_of(name)] += 1
    if ignored:
        listing = ", ".join(f"{count} {suffix}" for suffix, count in sorted(ignored.items()))
        logger.info("%s: files left out, not DICOM: %s", source.dataset, listing)


def _has_magic(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return True  # let the reader say why


def is_slice(header: Header) -> bool:
    """Whether the object is one slice of a volume, to be put together with those of its series."""
    return (
        header.modality in _TOMOGRAPHIC
        and header.frames == 1
        and bool(header.series_uid)
        and header.position is not None
        and header.orientation is not None
    )


def _record(
    name: str,
    members: list[tuple[str, Path, Header]],
    source: Source,
    options: Options,
    masks: dict[str, list[Path]],
) -> Record | Refusal:
    first_name, first_path, header = members[0]
    for what in ("modality", "subject"):
        values = {getattr(member, what) for _, _, member in members}
        if len(values) > 1:
            reason = f"series of {len(members)} slices has {len(values)} values of {what}; separate the files"
            return Refusal(name, first_path, reason)
    folders = PurePosixPath(first_name).parts[:-1]
    if options.subject == "folder":
        subject = folders[0] if folders else ""
    else:
        subject = header.subject
    if not subject:
        mend = "the file lies in no folder" if options.subject == "folder" else "use options.subject: folder"
        return Refusal(name, first_path, f"names no subject ({options.subject}); {mend}")
    mine = masks.get(header.series_uid, [])
    if len(mine) > 1:
        reason = f"{len(mine)} {options.masks} objects refer to it, expected one; keep the one you want"
        return Refusal(name, first_path, reason)
    return Record(
        dataset=source.dataset,
        name=name,
        subject=subject,
        paths=tuple(path for _, path, _ in sorted(members, key=lambda member: _order(member[0], member[2]))),
        modality=source.modality or _modality(header),
        organ=source.organ,
        licence=source.licence,
        study=header.study_uid or None,
        mask=mine[0] if mine else None,
    )


def _order(name: str, header: Header) -> tuple[int, str]:
    """Instance number, then name: only a tidy order, the reader sorts by position."""
    return (header.instance_number or 0, name)


def _modality(header: Header) -> Modality | None:
    try:
        return parse_modality(header.modality)
    except CollectionError:
        return None  # the reader has the last word
