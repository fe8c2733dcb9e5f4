"""A file's name in BIDS: `sub-01_ses-02_run-1_T1w.nii.gz` is entities, a suffix and an extension."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import CollectionError
from .base import stem_of

_ENTITY = re.compile(r"([A-Za-z]+)-([A-Za-z0-9+.]+)")
_SUFFIX = re.compile(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*")  # a dash as in SCT's seg-manual


@dataclass(frozen=True, slots=True)
class Name:
    """What the path of one file says."""

    path: str  # relative to the root of the dataset
    datatype: str  # the folder: anat, func ...
    entities: dict[str, str]  # {"sub": "01", "ses": "02"}
    suffix: str
    stem: str  # without folders and extension


def parse_name(path: str, *, strict: bool = True) -> Name:
    """Parse the relative path of a file below `sub-*`.

    Args:
        strict: every part but the last must be an entity; derivatives keep the image's suffix among them.

    Raises:
        CollectionError: not named as BIDS does, or it lies in the folder of another subject or session.
    """
    parts = path.split("/")
    stem = stem_of(path)
    *pairs, suffix = stem.split("_")
    found = [_ENTITY.fullmatch(pair) for pair in pairs]
    entities = {match[1]: match[2] for match in found if match}
    if not _SUFFIX.fullmatch(suffix) or (strict and not all(found)) or "sub" not in entities:
        raise CollectionError(f"{parts[-1]}: expected a name such as sub-01_T1w.nii.gz; rename or exclude it")
    for folder in parts[:-1]:
        place = _ENTITY.fullmatch(folder)
        if place and place[1] in ("sub", "ses") and entities.get(place[1]) != place[2]:
            raise CollectionError(
                f"{parts[-1]}: lies in {folder}, which its name does not say; move or rename it"
            )
    return Name(path, parts[-2] if len(parts) > 1 else "", entities, suffix, stem)
