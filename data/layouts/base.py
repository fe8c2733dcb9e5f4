"""What all layouts share: the Source they read, the Refusal they yield, and the walk over a folder.

A layout never opens pixels. It lists folders with `os.scandir` (about 2 µs a file on a warm local disk),
reads one table or, for DICOM, the headers, and yields a Record per image, or a Refusal per image that it
found and cannot describe. A layout that cannot be used as a whole raises CollectionError.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..annotations.kinds import LabelKind
from ..errors import CollectionError, ConfigError, nearest
from ..interop import archive
from ..sample import Modality, Organ, Record

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
T = TypeVar("T")

SPLITS = ("train", "val", "test")
_SPLIT_SYNONYMS = {
    "training": "train", "tr": "train", "valid": "val", "validation": "val", "dev": "val", "tuning": "val",
    "testing": "test", "ts": "test",
}  # fmt: skip

# Suffixes that a log may name. File names do not travel, and what follows a dot may be a name or a number.
_COMMON = {
    ".bvals", ".bvecs", ".csv", ".db", ".doc", ".docx", ".gz", ".htm", ".html", ".json", ".license", ".log",
    ".mat", ".md", ".pdf", ".pkl", ".py", ".rst", ".sql", ".svs", ".tar", ".tsv", ".txt", ".xls", ".xlsx",
    ".xml", ".yaml", ".yml", ".zip",
}  # fmt: skip

# Systems' own litter, beside everything that starts with a dot (which includes AppleDouble's `._name`).
_LITTER = {"__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One entry of a collection, checked: where a dataset lies and what is known of it."""

    dataset: str
    layout: str
    root: Path  # absolute
    modality: Modality | None = None  # None: from the layout, or from the file
    organ: Organ | None = None
    licence: str = "unknown"
    splits: tuple[str, ...] = ()  # empty: all
    exclude: tuple[str, ...] = ()  # globs on the record's name and on its relative paths
    classes: tuple[str, ...] = ()  # empty: any label
    mask_classes: dict[int, str] = field(default_factory=dict)
    mask_values: dict[int, int] | str | None = None  # None as they are | "nonzero" | {old: new}
    fourth_axis: str = "channels"  # or "frames"
    reading: Mapping[str, Any] = field(default_factory=dict)  # what of Given the source says of every file
    burned_in: str = "refuse"  # or "keep"
    label_kinds: dict[str, LabelKind] = field(default_factory=dict)
    masks_from: str = "files"  # or "polygons"
    consensus: str | None = None  # "majority" | "staple": of annotators' masks, where there is no other mask
    options: Any = None  # the layout's own Options

    def relative(self, path: Path) -> str:
        """`path` below the source's root with forward slashes; unchanged when it lies elsewhere."""
        try:
            return path.relative_to(self.root).as_posix()
        except ValueError:
            return path.as_posix()


@dataclass(frozen=True, slots=True)
class Refusal:
    """An image that was found but cannot become a Record."""

    name: str  # what its record would have been called
    path: Path
    reason: str


class Layout(Protocol):
    """A way in which datasets lie on disk; a module of this package, named in `LAYOUTS`."""

    Options: type  # dataclass: the keys of the source's `options`

    @staticmethod
    def describe(source: Source) -> Source:
        """The source completed by what the layout's own metadata says (modality, names of mask classes).

        Raises CollectionError when the metadata file is missing or broken.
        """
        ...

    @staticmethod
    def scan(
        root: Path, source: Source, options: Any, progress: Progress | None = None
    ) -> Iterator[Record | Refusal]:
        """Yield what lies below `root`, in the order of names. Raises CollectionError."""
        ...


def as_it_is(source: Source) -> Source:
    """`describe` of a layout that says nothing of all its images."""
    return source


def parse_split(text: str) -> str:
    """`train`, `val` or `test` from a source's own word. Raises CollectionError when unknown."""
    word = str(text).strip().lower()
    word = _SPLIT_SYNONYMS.get(word, word)
    if word in SPLITS:
        return word
    raise CollectionError(f"unknown split {text!r}{nearest(word, {*SPLITS, *_SPLIT_SYNONYMS})}")


def walk(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (relative path with forward slashes, path) of every file below `root`, in the order of names.

    Hidden files and systems' litter are left out. Links to folders are followed once: a folder that has been
    seen under another name is not entered again, so that loops end.
    """
    seen: set[tuple[int, int]] = set()
    folders = [("", root)]
    while folders:
        prefix, folder = folders.pop()
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            raise CollectionError(
                f"{folder}: cannot be listed ({error.strerror}); mend its rights"
            ) from error
        inner = []
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _LITTER:
                continue
            if entry.is_dir():
                inner.append((f"{prefix}{entry.name}/", Path(entry.path)))
            elif entry.is_file():
                yield f"{prefix}{entry.name}", Path(entry.path)
        folders.extend(reversed(inner))


def stem_of(name: str) -> str:
    """File name without folders and suffix; `.nii.gz` is one suffix."""
    name = name.rpartition("/")[2]  # pathlib would cost ten times as much, on every file of a tree
    lower = name.lower()
    for double in (".nii.gz", ".ome.tif", ".ome.tiff"):
        if lower.endswith(double):
            return name[: -len(double)]
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and dot and suffix else name


def kind_of(name: str) -> str:
    """The suffix of a file that is left out, for the log; "other" when it may be part of somebody's name."""
    suffix = name[name.rfind(".") :].lower()
    return suffix if suffix in _COMMON else "other"


def has_suffix(name: str, suffixes: Sequence[str]) -> bool:
    """Whether the file name ends in one of `suffixes` (lower case, with the dot), in any case."""
    return name.lower().endswith(tuple(suffixes))


def subject_pattern(text: str | None, key: str = "options.subject_pattern") -> re.Pattern[str] | None:
    """Compile a pattern that has exactly one group: the subject.

    Raises:
        ConfigError: not a regular expression, or no group, or several.
    """
    if text is None:
        return None
    pattern = compiled(text, key)
    if pattern.groups != 1:
        raise ConfigError(
            f"{key}: {text!r} has {pattern.groups} groups; mark the subject with exactly one (...)"
        )
    return pattern


def subject_in(name: str, pattern: re.Pattern[str] | None) -> str:
    """The subject that `pattern` finds in a record's name ("": it does not match); the name without one."""
    if pattern is None:
        return name
    found = pattern.search(name)
    return (found.group(1) or "") if found else ""


def record_of(source: Source, name: str, path: Path, pattern: re.Pattern[str] | None, **known: Any) -> Record:
    """The Record of one file, with what the source says of all its images; `known` adds to it.

    Raises:
        CollectionError: the file is missing or empty, or `pattern` does not find its subject.
    """
    if why := readable(path):
        raise CollectionError(why)
    subject = subject_in(name, pattern)
    if not subject and pattern is not None:
        raise CollectionError(f"options.subject_pattern {pattern.pattern!r} does not match")
    return Record(
        dataset=source.dataset,
        name=name,
        subject=subject,
        paths=(path,),
        modality=source.modality,
        organ=source.organ,
        licence=source.licence,
        **known,
    )


def compiled(text: str, key: str) -> re.Pattern[str]:
    """`re.compile` whose error names the key. Raises ConfigError."""
    try:
        return re.compile(text)
    except re.error as error:
        raise ConfigError(f"{key}: {text!r} is not a regular expression: {error}") from error


def counted(items: Sequence[T], what: str, progress: Progress | None) -> Iterator[T]:
    """Iterate over `items` and report every 256th, and the end, to `progress`."""
    for done, item in enumerate(items):
        if progress is not None and done % 256 == 0:
            progress(done, len(items), f"scan | {what}")
        yield item
    if progress is not None:
        progress(len(items), len(items), f"scan | {what}")


def readable(path: Path) -> str | None:
    """Why `path` cannot be an image file (missing, a folder, empty), or None. One `stat`."""
    try:
        if archive.split(path)[1]:
            return None if archive.stat(path)[0] else "member is empty (0 bytes)"
        status = path.stat()
    except (OSError, ValueError):  # a NUL in the name
        return "file is missing"
    if not stat.S_ISREG(status.st_mode):
        return "is not a file"
    return None if status.st_size else "file is empty (0 bytes)"
