"""One record -> the samples that go into a shard, and nothing that identifies a person with them.

Names, subjects and studies leave here only as salted keys; reasons of failures are scrubbed of paths, names
and DICOM identifiers, because `failures.jsonl` travels with the shards and logs are kept. Who builds sees
the paths on the terminal.
"""

from __future__ import annotations

import hashlib
import re
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..annotations.readings import annotations_meta, annotations_of, annotators_of, mask_paths
from ..errors import MedloomError
from ..layouts.base import Source, stem_of
from ..privacy import check_burned_in, key_of, subject_key
from ..readers import each
from ..sample import Image, Modality, Organ, Record, Sample
from ..shards.format import FORMAT_VERSION
from .preprocess import describe

_IDENTIFIER = re.compile(r"\b\d+(?:\.\d+){4,}\b")  # DICOM UIDs
_SWALLOWS = 4  # letters
_ABSOLUTE_PATH = re.compile(r"(?<![\w.])(?:/|[A-Za-z]:\\)[^\s,;:()'\"]+")


def samples_of(source: Source, record: Record, salt: bytes) -> Iterator[Sample]:
    """Read a record and its mask; one Sample an image (several for frames, tiles), one at a time.

    Raises:
        ReadError: an image or the mask cannot be used; the record is to be refused as a whole.
    """
    for image in each(record.paths, fourth_axis=source.fourth_axis, given=record.given):
        check_burned_in(image.facts, source.burned_in)
        yield _sample(source, record, image, salt)


def content_hash(array: np.ndarray) -> str:
    """BLAKE2b-128 of the decoded pixels with shape and dtype: equal images have equal hashes."""
    digest = hashlib.blake2b(f"{array.dtype.name}{list(array.shape)}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def scrub(reason: str, secrets: Iterable[str]) -> str:
    """Take the given words, absolute paths and DICOM UIDs out of a message that will be shared.

    A word of four letters or more takes what it is part of with it: `Doe_mask.png` goes with `Doe`.
    """
    for secret in sorted({s for s in secrets if len(s) > 1}, key=lambda s: (-len(s), s)):
        word = re.escape(secret)
        part = rf"[\w.+@~-]*{word}[\w.+@~-]*" if len(secret) >= _SWALLOWS else rf"(?<!\w){word}(?!\w)"
        reason = re.sub(part, "<file>", reason)
    return _ABSOLUTE_PATH.sub("<path>", _IDENTIFIER.sub("<uid>", reason))


def secrets_of(source: Source, record: Record) -> set[str]:
    """The words of a record that may name a person: name, subject, study, annotators, paths in all forms."""
    secrets = {record.name, record.subject, record.study or "", str(source.root), stem_of(record.name)}
    secrets.update(annotators_of(record))
    for path in (*record.paths, *mask_paths(record)):
        secrets |= {str(path), str(path.parent), *words_of(source.relative(path))}
    return secrets


def words_of(path: str) -> set[str]:
    """A relative path, its folders and its name, with and without suffix."""
    parts = {part for part in path.split("/") if part}
    return {path, *parts, *map(stem_of, parts)}


def reason_of(error: Exception) -> str:
    """The message of an error that is meant for users; type and place of others, which may quote the file."""
    if isinstance(error, MedloomError):
        return str(error)
    places = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(places[-1].filename).name}:{places[-1].lineno}" if places else ""
    return f"{type(error).__name__}{where}, a fault of medloom on this file; please report it"


def _sample(source: Source, record: Record, image: Image, salt: bytes) -> Sample:
    frame = image.facts.get("frame")  # readers number what is not the file's only image
    part = image.part or ("" if frame is None else f"frame-{frame}")
    key = key_of(salt, record.dataset, record.name, part)
    modality = record.modality or image.modality or Modality.OTHER
    found = annotations_of(source, record, image)
    study = None if record.study is None else subject_key(salt, record.dataset, f"study {record.study}")
    meta: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "key": key,
        "dataset": record.dataset,
        "modality": str(modality),
        "organ": str(record.organ or Organ.OTHER),
        "licence": record.licence,
        "ndim": image.ndim,
        "shape": [int(n) for n in image.array.shape],
        "dtype": image.array.dtype.name,
        "spacing": None if image.spacing is None else [float(s) for s in image.spacing],
        "affine": None if image.affine is None else np.asarray(image.affine, float).tolist(),
        # d to superior, h to anterior, w to right; an array without geometry lies as it was stored
        "orientation": "SAR" if image.ndim == 3 and image.affine is not None else None,
        # z-scores of a CT are not in Hounsfield units
        "stats": describe(image.array, None if image.facts.get("normalised") else modality),
        "subject": subject_key(salt, record.dataset, record.subject),
        "study": study,
        "split": record.split,
        "frame": frame,
        "facts": image.facts,
        "content_hash": content_hash(image.array),
        **annotations_meta(source, record, found, salt),
    }
    return Sample(key=key, image=image.array, mask=found.mask, jpeg=image.jpeg, meta=meta)
