"""A folder per class: `root/benign/a.png` is labelled "benign", however deep below `benign` it lies.

With `split_folders` the first level names the split (`root/train/benign/a.png`). Files directly in the root
(or in a split's folder) have no label. With `mask_suffix: _mask`, `a_mask.png` beside `a.png` is its mask.
Files of suffixes that no reader knows are left out and counted in the log. The price is one listing per
folder.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import CollectionError
from ..sample import Record
from .base import (
    Progress,
    Refusal,
    Source,
    as_it_is,
    counted,
    has_suffix,
    kind_of,
    parse_split,
    record_of,
    stem_of,
    subject_pattern,
    walk,
)

logger = logging.getLogger(__name__)


@dataclass
class Options:
    """Keys of `options` in a source of layout image_folder."""

    split_folders: bool = False  # the first level of folders is train / val / test
    subject_pattern: str | None = None  # one group on the relative path; default: the relative path
    mask_suffix: str | None = None  # e.g. _mask: a_mask.png is the mask of a.png


describe = as_it_is  # folders say nothing beyond the labels


def scan(
    root: Path, source: Source, options: Options, progress: Progress | None = None
) -> Iterator[Record | Refusal]:
    """Yield a Record per image file below `root`.

    Raises:
        CollectionError: with `split_folders`, a first-level folder is not train, val or test.
        ConfigError: `subject_pattern` is not a pattern with one group.
    """
    pattern = subject_pattern(options.subject_pattern)
    images, masks = _sort_out(root, source, options)
    for name, path in counted(images, source.dataset, progress):
        folders = name.split("/")[:-1]
        split = None
        if options.split_folders:
            if not folders:
                yield Refusal(name, path, "lies outside the train / val / test folders (split_folders)")
                continue
            try:
                split = parse_split(folders[0])
            except CollectionError as error:
                raise CollectionError(f"{root / folders[0]}: {error}; or set split_folders: false") from error
            folders = folders[1:]
        own_masks = masks.get(_without_suffix(name), []) if masks else []
        try:
            if len(own_masks) > 1:
                both = ", ".join(mask.name for mask in own_masks)
                raise CollectionError(f"has {len(own_masks)} masks ({both}); merge them into one label map")
            known = {"labels": {"class": folders[0]} if folders else {}, "mask": (own_masks or [None])[0]}
            record = record_of(source, name, path, pattern, split=split, **known)
        except CollectionError as error:
            yield Refusal(name, path, str(error))
            continue
        yield record


def _sort_out(
    root: Path, source: Source, options: Options
) -> tuple[list[tuple[str, Path]], dict[str, list[Path]]]:
    """Images by relative path, and masks by the relative path without suffix of the image they belong to."""
    from ..readers import dicom, itk, nifti, raster, slide, video  # imports pydicom, nibabel and Pillow

    suffixes = tuple(s for reader in (dicom, itk, nifti, raster, slide, video) for s in reader.SUFFIXES)
    # Several masks of one image are numbered by some datasets: a_mask.png, a_mask_1.png.
    tail = re.compile(rf"{re.escape(options.mask_suffix)}(_\d+)?$") if options.mask_suffix else None
    images: list[tuple[str, Path]] = []
    masks: dict[str, list[Path]] = defaultdict(list)
    ignored: Counter[str] = Counter()
    for name, path in walk(root):
        if not has_suffix(name, suffixes):
            ignored[kind_of(name)] += 1
            continue
        stem = stem_of(name) if tail else ""
        if tail and (end := tail.search(stem)):
            masks[_folder(name) + stem[: end.start()]].append(path)
        else:
            images.append((name, path))
    if ignored:
        listing = ", ".join(f"{count} {suffix}" for suffix, count in sorted(ignored.items()))
        logger.info("%s: files left out, no image suffix: %s", source.dataset, listing)
    if masks and (orphans := len(masks.keys() - {_without_suffix(name) for name, _ in images})):
        logger.warning("%s: %d masks belong to no image", source.dataset, orphans)
    return images, masks


def _without_suffix(name: str) -> str:
    return _folder(name) + stem_of(name)


def _folder(name: str) -> str:
    return name[: name.rfind("/") + 1]
