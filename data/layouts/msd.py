"""The Medical Segmentation Decathlon's layout: `dataset.json` lists images and their label maps.

`training` becomes split "train" with masks, `test` becomes split "test" without. The JSON also gives the
modality and the names of the mask values, unless the collection states them. nnU-Net's reversed `labels`
({"liver": 1}) are understood; its file naming by channel is not. Nothing but the JSON is read: 10,000 entries
scan in a fraction of a second.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import CollectionError
from ..sample import Modality, Record, parse_modality
from .base import Progress, Refusal, Source, counted, readable, record_of, subject_pattern

_SEQUENCE = re.compile(r"(t1|t2|pd|flair|adc|dwi|mp-?mri|mr)([^a-z]|w|gd|ce|$)")  # MSD names MR channels so


@dataclass
class Options:
    """Keys of `options` in a source of layout msd."""

    include_unlabelled: bool = True  # the images of `test`, which have no label map
    subject_pattern: str | None = None  # one group on the relative path; default: the relative path


def describe(source: Source) -> Source:
    """Fill modality and mask classes from dataset.json where the collection does not state them."""
    facts = _read(source.root)
    classes = source.mask_classes or mask_classes_of(facts)
    return replace(source, modality=source.modality or modality_of(facts, source), mask_classes=classes)


def scan(
    root: Path, source: Source, options: Options, progress: Progress | None = None
) -> Iterator[Record | Refusal]:
    """Yield a Record per image listed in `root/dataset.json`.

    Raises:
        CollectionError: no dataset.json, not JSON, or its entries are not as in the Decathlon.
    """
    facts = _read(root)
    pattern = subject_pattern(options.subject_pattern)
    entries = [(_pair(root, entry), "train") for entry in _list(root, facts, "training")]
    if options.include_unlabelled:
        entries += [(_pair(root, entry), "test") for entry in _list(root, facts, "test")]
    for (name, mask_name), split in counted(entries, source.dataset, progress):
        if PurePosixPath(name).name.startswith("._"):  # AppleDouble litter, listed by some tasks
            continue
        path, mask = root / name, root / mask_name if mask_name else None
        try:
            if mask is not None and (why := readable(mask)):
                raise CollectionError(readable(path) or f"mask {mask_name}: {why}")
            record = record_of(source, name, path, pattern, split=split, mask=mask)
        except CollectionError as error:
            yield Refusal(name, path, str(error))
            continue
        yield record


def _read(root: Path) -> dict[str, Any]:
    path = root / "dataset.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise CollectionError(f"{path}: missing; layout msd needs it (or use layout table)") from error
    except (OSError, ValueError) as error:
        raise CollectionError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(facts, dict) or not isinstance(facts.get("training"), list):
        raise CollectionError(f"{path}: has no list `training`; layout msd needs one (or use layout table)")
    return facts


def _list(root: Path, facts: dict[str, Any], key: str) -> list[Any]:
    entries = facts.get(key) or []
    if not isinstance(entries, list):
        raise CollectionError(f"{root / 'dataset.json'}: `{key}` is not a list")
    return entries


def _pair(root: Path, entry: Any) -> tuple[str, str | None]:
    """(image, label map or None) of an entry, relative and without `./`."""
    image, mask = (entry.get("image"), entry.get("label")) if isinstance(entry, dict) else (entry, None)
    if not isinstance(image, str) or not (mask is None or isinstance(mask, str)):
        raise CollectionError(f"{root / 'dataset.json'}: entry {str(entry)[:80]!r} names no image file")
    return posixpath.normpath(image), posixpath.normpath(mask) if mask else None


def mask_classes_of(facts: dict[str, Any]) -> dict[int, str]:
    """Names of the mask values in the `labels` of a dataset.json, without the background."""
    classes: dict[int, str] = {}
    labels = facts.get("labels")
    for key, value in labels.items() if isinstance(labels, dict) else ():
        number, name = (key, value) if isinstance(value, str) else (value, key)
        if isinstance(number, list):  # regions of nnU-Net: several values are one structure
            continue
        try:
            classes[int(number)] = str(name)
        except (TypeError, ValueError):
            continue
    classes.pop(0, None)  # the background
    return dict(sorted(classes.items()))


def modality_of(facts: dict[str, Any], source: Source) -> Modality:
    """The one modality of the channels in a dataset.json. Raises CollectionError when there is not one."""
    channels = facts.get("modality") or facts.get("channel_names") or {}
    words = [str(word) for word in (channels.values() if isinstance(channels, dict) else [channels])]
    mend = f"state `modality` in source {source.dataset}"
    try:
        found = {
            Modality.MRI if _SEQUENCE.match(word.strip().lower()) else parse_modality(word) for word in words
        }
    except CollectionError as error:
        raise CollectionError(f"{source.root / 'dataset.json'}: {error}; {mend}") from error
    if len(found) != 1:
        raise CollectionError(
            f"{source.root / 'dataset.json'}: channels {words} are not one modality; {mend}"
        )
    return found.pop()
