"""A folder a case, several files of one patient inside: BraTS, ISLES, KiTS and many others.

    BraTS20_Training_001/BraTS20_Training_001_flair.nii.gz, ..._t1.nii.gz, ..._seg.nii.gz
    case_00012/imaging.nii.gz, segmentation.nii.gz

`channels` are the words in which the files' names end (or that they are): their files become the channels of
one image, or with `stack: false` an image each, of one subject and study. `mask` is the word of the label
map. A folder that holds images is a case, however deep it lies. That the channels' grids agree is checked
when they are read; a scan costs one listing a folder.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CollectionError, ConfigError
from ..sample import Given, Record
from .base import (
    Progress,
    Refusal,
    Source,
    as_it_is,
    counted,
    has_suffix,
    parse_split,
    readable,
    stem_of,
    subject_in,
    subject_pattern,
    walk,
)

logger = logging.getLogger(__name__)

_JOINTS = "_-. "  # between the case and the word


@dataclass
class Options:
    """Keys of `options` in a source of layout cases."""

    channels: list[str] = field(default_factory=list)  # words in the order of the channels
    mask: str | None = None  # word of the label map, e.g. seg
    stack: bool = True  # false: every channel is an image of its own
    split_folders: bool = False  # the first level of folders is train / val / test
    class_folders: bool = False  # the first level (below the split) is the class
    subject_pattern: str | None = None  # one group on the case's path; default: that path

    def __post_init__(self) -> None:
        words = [*self.channels, *([self.mask] if self.mask else [])]
        for word in words:
            if [one.lower() for one in words].count(word.lower()) > 1:
                raise ConfigError(f"channels and mask: {word!r} is given twice; every word means one file")


describe = as_it_is  # folders say nothing of modality


def scan(
    root: Path, source: Source, options: Options, progress: Progress | None = None
) -> Iterator[Record | Refusal]:
    """Yield a Record per case, or per file of a case with `stack: false`.

    Raises:
        CollectionError: no `channels` are named; the message lists the words found.
        ConfigError: `subject_pattern` is not a pattern with one group.
    """
    cases = _cases(root, source)
    if not options.channels and cases:
        words = _words_of(*next(iter(cases.items())))
        raise CollectionError(f"{root}: options.channels is empty; words of the first case: {words}")
    pattern = subject_pattern(options.subject_pattern)
    unused: Counter[str] = Counter()
    for name, files in counted(list(cases.items()), source.dataset, progress):
        first = next(iter(files.values()))
        subject = subject_in(name, pattern)
        try:
            if not subject:
                raise CollectionError(f"options.subject_pattern {options.subject_pattern!r} does not match")
            split, label = _said_by_folders(root, name, options)
            chosen, mask = _choose(files, options, unused)
            known = {
                "dataset": source.dataset,
                "subject": subject,
                "modality": source.modality,
                "organ": source.organ,
                "licence": source.licence,
                "study": name,
                "split": split,
                "labels": {"class": label} if label else {},
                "mask": mask,
            }
        except CollectionError as error:
            yield Refusal(name, first, str(error))
            continue
        if options.stack:
            given = Given(channels=tuple(options.channels)) if len(chosen) > 1 else None
            yield Record(name=name, paths=tuple(chosen.values()), given=given, **known)
        else:
            for word, path in chosen.items():
                yield Record(name=f"{name}/{word}", paths=(path,), **known)
    if unused:
        listing = ", ".join(f"{count} {word}" for word, count in unused.most_common(12))
        logger.info("%s: files left out, in no channel: %s", source.dataset, listing)


def _cases(root: Path, source: Source) -> dict[str, dict[str, Path]]:
    """Folders with images: relative path -> {file name: path}, in the order of names."""
    from ..readers import SUFFIXES  # imports pydicom, nibabel and Pillow

    suffixes = tuple(SUFFIXES)
    cases: dict[str, dict[str, Path]] = {}
    loose = 0
    for name, path in walk(root):
        if not has_suffix(name, suffixes):
            continue
        folder, _, file = name.rpartition("/")
        if folder:
            cases.setdefault(folder, {})[file] = path
        else:
            loose += 1
    if loose:
        logger.warning("%s: %d files lie in no case's folder and are left out", source.dataset, loose)
    return cases


def word_of(case: str, file: str) -> str:
    """What the file's name says beyond the case's: `flair` of `BraTS20_001/BraTS20_001_flair.nii.gz`."""
    stem, folder = stem_of(file), case.rpartition("/")[2]
    rest = stem[len(folder) :] if stem.lower().startswith(folder.lower()) else stem
    return rest.strip(_JOINTS) or stem


def _words_of(case: str, files: dict[str, Path]) -> str:
    return ", ".join(sorted({word_of(case, file) for file in files})[:12])


def _choose(
    files: dict[str, Path], options: Options, unused: Counter[str]
) -> tuple[dict[str, Path], Path | None]:
    """Files of the channels by word, in order, and the mask. Raises CollectionError."""
    paths = _by_word(files, options, unused)
    missing = [word for word in options.channels if word not in paths]
    if missing and (options.stack or len(missing) == len(options.channels)):
        there = ", ".join(word for word in options.channels if word in paths) or "none"
        mend = "; or set stack: false" if options.stack and there != "none" else ""
        raise CollectionError(f"has no {missing[0]}, of the channels only {there}{mend}")
    for word, path in paths.items():
        if why := readable(path):
            raise CollectionError(f"{'mask ' if word == options.mask else ''}{path.name}: {why}")
    mask = paths.pop(options.mask, None) if options.mask else None
    return paths, mask


def _by_word(files: dict[str, Path], options: Options, unused: Counter[str]) -> dict[str, Path]:
    """The one file of each word, in the order of the options. Raises CollectionError."""
    words = [*options.channels, *([options.mask] if options.mask else [])]
    found: dict[str, list[Path]] = {word: [] for word in words}
    # The longest word counts: with `seg` and `seg_t1`, case_seg_t1.nii.gz is the second.
    by_length = sorted(words, key=len, reverse=True)
    for file, path in files.items():
        stem = stem_of(file).lower()
        word = next((word for word in by_length if _ends_in(stem, word.lower())), None)
        if word is None:
            unused[stem.rpartition("_")[2]] += 1
        else:
            found[word].append(path)
    for word, paths in found.items():
        if len(paths) > 1:
            both = ", ".join(path.name for path in paths[:3])
            raise CollectionError(f"{len(paths)} files are {word} ({both}); name it more exactly")
    return {word: paths[0] for word, paths in found.items() if paths}


def _ends_in(stem: str, word: str) -> bool:
    return stem == word or (stem.endswith(word) and stem[-len(word) - 1] in _JOINTS)


def _said_by_folders(root: Path, name: str, options: Options) -> tuple[str | None, str | None]:
    """Split and class of a case by the folders above it. Raises CollectionError."""
    folders = name.split("/")[:-1]
    split = None
    if options.split_folders:
        if not folders:
            raise CollectionError("lies outside the train / val / test folders (split_folders)")
        split = parse_split(folders.pop(0))
    return split, folders[0] if options.class_folders and folders else None
