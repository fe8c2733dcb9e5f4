"""Folders of video files, of which a frame every so many seconds becomes a picture.

Endoscopy, ultrasound loops, surgery: `every` seconds one frame (readers/video.py), `most` of one file at the
most. All frames of a file are of one subject and carry its labels, so a video is never in two splits. As in
image_folder, folders can be the classes and the splits. Nothing is opened at the scan.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
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
    record_of,
    subject_pattern,
    walk,
)


@dataclass
class Options:
    """Keys of `options` in a source of layout video."""

    every: float = 1.0  # seconds from one frame that is kept to the next
    most: int = 0  # frames kept of one file, evenly spread; 0: all
    class_folders: bool = False  # the first level of folders (below the split) is the class
    split_folders: bool = False  # the first level of folders is train / val / test
    subject_pattern: str | None = None  # one group on the relative path; default: the relative path

    def __post_init__(self) -> None:
        if not (math.isfinite(self.every) and self.every > 0):
            raise ConfigError(f"every: {self.every} s; give the seconds between two frames, e.g. 1.0")
        if self.most < 0:
            raise ConfigError(f"most: {self.most} frames; give how many of a file are kept, 0 for all")


describe = as_it_is  # folders say nothing beyond the labels


def scan(
    root: Path, source: Source, options: Options, progress: Progress | None = None
) -> Iterator[Record | Refusal]:
    """Yield a Record per video file below `root`, in the order of names.

    Raises:
        CollectionError: there is no video.
        ConfigError: `subject_pattern` is not a pattern with one group.
    """
    from ..readers import video

    pattern = subject_pattern(options.subject_pattern)
    files = [(name, path) for name, path in walk(root) if has_suffix(name, video.SUFFIXES)]
    if not files:
        raise CollectionError(f"{root}: no video below it, expected one of {', '.join(video.SUFFIXES)}")
    given = Given(every=options.every, most=options.most)
    for name, path in counted(files, source.dataset, progress):
        folders, split = name.split("/")[:-1], None
        try:
            if options.split_folders:
                if not folders:
                    raise CollectionError("lies outside the train / val / test folders (split_folders)")
                split = parse_split(folders.pop(0))
            labels = {"class": folders[0]} if options.class_folders and folders else {}
            yield record_of(source, name, path, pattern, split=split, labels=labels, given=given)
        except CollectionError as error:
            yield Refusal(name, path, str(error))
