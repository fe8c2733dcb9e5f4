"""What the layouts of marked pictures share: finding the picture that a file names, and making Shapes.

Coordinates: a Shape has (y, x) with the first pixel from 0 to 1; layouts translate from their formats' own.
What marks nothing (a box of no width, an outline of two points) is left out and counted; what contradicts
itself refuses the picture.
"""

from __future__ import annotations

import logging
import math
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import CollectionError, ConfigError, nearest
from ..sample import Shape
from .base import SPLITS, has_suffix, parse_split, stem_of, walk

logger = logging.getLogger(__name__)

KINDS = ("box", "polygon", "point")

_WORDS = re.compile(r"[^A-Za-z]+")


class Pictures:
    """The pictures below a folder, to be found by what annotation files call them.

    Attributes:
        paths: path by relative name, in the order of names.
    """

    def __init__(self, root: Path, folder: str | None = None) -> None:
        from ..readers import raster  # imports Pillow

        self.root = root
        top = root / folder if folder else root
        if not top.is_dir():
            raise CollectionError(f"{top}: no such folder (options.images)")
        prefix = f"{folder.strip('/')}/" if folder and folder.strip("./") else ""
        self.paths: dict[str, Path] = {}
        self.others: dict[str, Path] = {}  # files of other kinds
        self._by_file: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for name, path in walk(top):
            name = prefix + name
            if not has_suffix(name, raster.SUFFIXES):
                self.others[name] = path
                continue
            self.paths[name] = path
            self._by_file[name.rpartition("/")[2]].append(name)
            self._by_stem[stem_of(name)].append(name)

    def find(self, text: str, near: str = "") -> str:
        """Relative name of the picture that an annotation file in folder `near` calls `text`.

        Tried in turn: as a path from that folder, from the root, and the only picture whose path ends so, or
        of that file name.

        Raises:
            CollectionError: there is none, or several could be meant.
        """
        text = text.replace("\\", "/").strip()
        for place in (f"{near}/{text}" if near else text, text):
            name = normal(place)
            if name in self.paths:
                return name
        file = text.rpartition("/")[2]
        alike = self._by_file.get(file, [])
        tail = normal(text)
        ending = [name for name in alike if name.endswith(f"/{tail}")]
        return self._only(ending or alike, file, near)

    def of_stem(self, stem: str, near: str = "") -> str:
        """Relative name of the picture with this file name, whatever its suffix. Raises CollectionError."""
        return self._only(self._by_stem.get(stem, []), stem, near)

    def _only(self, names: list[str], what: str, near: str) -> str:
        if len(names) > 1:  # the same names in several splits: the one that shares most folders counts
            shared = [_shared(name, near) for name in names]
            names = [name for name, count in zip(names, shared, strict=True) if count == max(shared)]
        if not names:
            raise CollectionError(f"picture {what}: none of this name below {self.root.name}/")
        if len(names) > 1:
            raise CollectionError(f"picture {what}: could be {' or '.join(names[:3])}; set options.images")
        return names[0]


def normal(text: str) -> str:
    """A relative path without `.` and `..` where they cancel."""
    return posixpath.normpath(text).lstrip("/")


def _shared(name: str, near: str) -> int:
    """Number of words of the folders `near` that are on the way to `name` too: train/labels, train2017."""
    return len(set(_WORDS.split(name.rpartition("/")[0])) & set(_WORDS.split(near)) - {""})


def split_in(name: str) -> str | None:
    """The split that a path's folders or file name say, whole words only; None when they say none."""
    for part in reversed(name.split("/")):
        for word in _WORDS.split(part):
            if len(word) > 2:  # `ts` and `tr` are parts of other names
                try:
                    return parse_split(word)
                except CollectionError:
                    continue
    return None


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise ConfigError unless these are kinds of Shapes."""
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"shapes: unknown kind {kind!r}{nearest(kind, KINDS)}")


def check_splits(splits: Any, key: str) -> None:
    """Raise ConfigError unless the values of a mapping are splits."""
    for split in splits.values():
        if split not in SPLITS:
            raise ConfigError(f"{key}: unknown split {split!r}{nearest(str(split), SPLITS)}")


def numbers(values: Any, what: str, count: int | None = None) -> list[float]:
    """Finite numbers, as many as there should be. Raises CollectionError."""
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError):
        found = [math.nan]
    if not all(map(math.isfinite, found)) or (count is not None and len(found) != count):
        expected = f"{count} numbers" if count else "numbers"
        raise CollectionError(f"{what}: {str(values)[:60]}, expected {expected}; mend the annotation")
    return found


class Marks:
    """Makes Shapes of one source from corners (x, y), and counts what marks nothing.

    Args:
        kinds: those that are kept; empty: all.
    """

    def __init__(self, dataset: str, kinds: Sequence[str] = ()) -> None:
        check_kinds(kinds)
        self._dataset, self._kinds = dataset, set(kinds) or set(KINDS)
        self.left_out: Counter[str] = Counter()

    def box(
        self, label: str, left: float, top: float, right: float, bottom: float, group: int | None = None
    ) -> list[Shape]:
        """A box between edges. Raises CollectionError when they are exchanged."""
        if right < left or bottom < top:
            raise CollectionError(
                f"box {label}: ({left:g}, {top:g}) to ({right:g}, {bottom:g}) is of negative size; mend it"
            )
        if right == left or bottom == top:
            self.left_out["boxes of no size"] += 1
            return []
        return self._kept("box", label, ((top, left), (bottom, right)), group)

    def polygon(self, label: str, xy: Sequence[float], group: int | None = None) -> list[Shape]:
        """An outline x, y, x, y ... Raises CollectionError for an odd number of coordinates."""
        if len(xy) % 2:
            raise CollectionError(f"outline {label}: {len(xy)} coordinates, expected pairs; mend it")
        if len(xy) < 6:
            self.left_out["outlines of fewer than three points"] += 1
            return []
        return self._kept("polygon", label, tuple(zip(xy[1::2], xy[::2], strict=True)), group)

    def outline(
        self, label: str, points: tuple[tuple[float, float], ...], group: int | None = None
    ) -> list[Shape]:
        """An outline of (y, x), as outlines.py makes them."""
        return self._kept("polygon", label, points, group)

    def point(self, label: str, x: float, y: float, group: int | None = None) -> list[Shape]:
        """A landmark."""
        return self._kept("point", label, ((y, x),), group)

    def report(self) -> None:
        """Say in the log what was left out."""
        if self.left_out:
            listing = ", ".join(f"{count} {what}" for what, count in sorted(self.left_out.items()))
            logger.warning("%s: marks left out: %s", self._dataset, listing)

    def _kept(
        self, kind: str, label: str, points: tuple[tuple[float, ...], ...], group: int | None
    ) -> list[Shape]:
        if kind not in self._kinds:
            return []
        return [Shape(kind=kind, label=label, points=points, group=group)]
