"""Samples of other people's shards: members with one key become Records.

Which member is the image is told by its extension, everything after the key's first dot, as webdataset splits
names. What is readable and does not say "mask" is an image; several in one sample become several Records of
one subject. Fields (`KEY.json`, `KEY.cls`, `KEY.txt`, LitData's scalars) become labels only when the options
name them: free text and other people's JSON may identify a person, so nothing is kept by default but `cls`.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CollectionError, ConfigError
from ..interop import archive
from ..sample import Given, Record
from .base import Refusal, Source, has_suffix, parse_split, subject_in

logger = logging.getLogger(__name__)

MASK_WORDS = frozenset({"mask", "masks", "seg", "segmentation", "label", "labels", "labelmap", "gt", "lbl"})
LONGEST_LABEL = 1000  # characters

_WORDS = re.compile(r"[^a-z]+")


@dataclass
class MemberOptions:
    """Keys of `options` that the layouts webdataset and litdata share. Fields are those of the samples."""

    image: list[str] = field(default_factory=list)  # extensions or leaves; empty: all that can be read
    mask: str | None = None  # extension or leaf; null: one that says mask, seg or label
    label: str | None = None  # field that becomes labels["class"]
    labels: list[str] = field(default_factory=list)  # further fields, kept under their own names
    subject: str | None = None  # field; default: every sample is its own subject
    subject_pattern: str | None = None  # one group on ARCHIVE/KEY
    study: str | None = None  # field
    split: str | None = None  # field; null: a shard named train-0001.tar says it
    spacing: str | None = None  # field with the mm of array files, as many as they have spatial axes
    axes: str | None = None  # of array files: HW, HWC, CHW, DHW, CDHW or another order; null: from the shape
    normalised: bool = False  # intensities of array files are already normalised

    def __post_init__(self) -> None:
        if self.axes is not None and not (
            set(self.axes) <= set("CDHW")
            and len(set(self.axes)) == len(self.axes)
            and {"H", "W"} <= set(self.axes)
        ):
            raise ConfigError(f"axes: {self.axes!r}; expected letters of CDHW, each at most once, e.g. CDHW")
        if self.subject and self.subject_pattern:
            raise ConfigError("subject and subject_pattern: both given; give one")


@dataclass(slots=True)
class Group:
    """The members of one sample."""

    name: str  # ARCHIVE/KEY, relative to the source's root
    archive: Path
    members: dict[str, str] = field(default_factory=dict)  # extension or leaf -> member's name, with a suffix
    fields: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None


class Converter:
    """Turns groups into Records; counts what it leaves out."""

    def __init__(self, source: Source, options: MemberOptions, pattern: re.Pattern[str] | None) -> None:
        self._source, self._options, self._pattern = source, options, pattern
        self.ignored: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()

    def records(self, group: Group) -> Iterator[Record | Refusal]:
        """Records of a sample, or one Refusal."""
        images, mask = self._choose(group)
        try:
            if group.fault:
                raise CollectionError(group.fault)
            if not images:
                if self._options.image:
                    raise CollectionError(
                        f"has no member {' or '.join(self._options.image)}, "
                        f"only {', '.join(group.members) or 'none'}"
                    )
                return  # counted
            known = self._known(group)
        except CollectionError as error:
            yield Refusal(group.name, group.archive, str(error))
            return
        for extension in images:
            address = archive.join(group.archive, group.members[extension])
            yield Record(
                name=f"{group.name}.{extension}",
                paths=(address,),
                mask=archive.join(group.archive, group.members[mask]) if mask else None,
                given=self._given(group) if _is_array(group.members[extension]) else None,
                **known,
            )

    def report(self) -> None:
        """Say in the log what was left out."""
        for what, counter in (("members left out", self.ignored), ("fields not kept", self.unused)):
            if counter:
                listing = ", ".join(f"{count} {name}" for name, count in counter.most_common(20))
                logger.info("%s: %s: %s", self._source.dataset, what, listing)

    def _choose(self, group: Group) -> tuple[list[str], str | None]:
        """Extensions of the images, and of the mask."""
        options = self._options
        readable = [extension for extension, name in group.members.items() if _readable(name)]
        mask = options.mask if options.mask in group.members else None
        if options.mask is None:
            masks = [e for e in readable if says_mask(e) and e not in options.image]
            mask = masks[0] if len(masks) == 1 else None
        if options.image:
            images = [extension for extension in options.image if extension in group.members]
        else:
            images = [e for e in readable if e not in (mask, options.mask) and not says_mask(e)]
        self.ignored.update(e for e in group.members if e not in images and e != mask)
        return images, mask

    def _known(self, group: Group) -> dict[str, Any]:
        """What all Records of a sample share. Raises CollectionError."""
        source, options, fields = self._source, self._options, group.fields
        subject = group.name
        if options.subject:
            subject = _text(fields, options.subject)
            if not subject:
                raise CollectionError(f"no subject: field {options.subject} is missing or empty")
        elif self._pattern is not None and not (subject := subject_in(group.name, self._pattern)):
            raise CollectionError(f"options.subject_pattern {options.subject_pattern!r} does not match")
        labels: dict[str, Any] = {}
        if (value := _class(fields, options.label or "cls", source.classes)) is not None:
            labels["class"] = value
        for name in options.labels:
            if (value := _plain(fields.get(name), name)) is not None:
                labels[name] = value
        used = {
            options.label or "cls",
            options.subject,
            options.study,
            options.split,
            options.spacing,
            *options.labels,
        }
        self.unused.update(name for name in fields if name not in used)
        split = parse_split(_text(fields, options.split)) if options.split else split_of(group.name)
        return {
            "dataset": source.dataset,
            "subject": subject,
            "modality": source.modality,
            "organ": source.organ,
            "licence": source.licence,
            "study": _text(fields, options.study) or None,
            "split": split,
            "labels": labels,
        }

    def _given(self, group: Group) -> Given:
        options, spacing = self._options, None
        if options.spacing:
            value = group.fields.get(options.spacing)
            steps = value if isinstance(value, list) else [value]
            numbers = [float(step) for step in steps if isinstance(step, int | float) and 0 < step < 1e6]
            spacing = tuple(numbers) if len(numbers) == len(steps) else None
        return Given(axes=options.axes or "", spacing=spacing, normalised=options.normalised)


def says_mask(extension: str) -> bool:
    """Whether an extension or leaf (`label.nii.gz`, `tumour_mask.npy`) calls itself a mask."""
    return bool(MASK_WORDS & set(_WORDS.split(extension.lower())))


def split_of(name: str) -> str | None:
    """`train` of `train/0001.tar/key` or `train-0001.tar/key`; None when the archive's path says nothing."""
    for part in reversed(name.split("/")[:-1]):
        word = re.split(r"[^A-Za-z]", part, maxsplit=1)[0]
        try:
            return parse_split(word) if word else None
        except CollectionError:
            continue
    return None


def _readable(name: str) -> bool:
    from ..readers import SUFFIXES

    # LitData's pictures and bytes have no suffix of their own: their first bytes decide when they are read.
    return has_suffix(name, (*SUFFIXES, ".pil", ".bytes"))


def _is_array(name: str) -> bool:
    from ..readers import array

    return has_suffix(name, array.SUFFIXES)


def _class(fields: Mapping[str, Any], name: str, classes: tuple[str, ...]) -> str | None:
    """The class as text; an index into the declared classes becomes their name."""
    text = _text(fields, name)
    if text.isdecimal() and text not in classes and int(text) < len(classes):
        return classes[int(text)]
    return text or None


def _text(fields: Mapping[str, Any], name: str | None) -> str:
    value = fields.get(name) if name else None
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise CollectionError(f"field {name} is a {type(value).__name__}, expected text or a number")
    text = str(value).strip()
    if len(text) > LONGEST_LABEL:
        raise CollectionError(f"field {name} has {len(text)} characters, expected at most {LONGEST_LABEL}")
    return text


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    return _text({name: value}, name) or None
