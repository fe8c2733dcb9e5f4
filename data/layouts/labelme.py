"""LabelMe's JSON: outlines, rectangles, circles, points and masks of one picture a file, beside it.

github.com/wkentaro/labelme. Coordinates are as in a Shape already. A circle becomes an outline of 64 corners,
a mask the outline of its pixels (outlines.py); lines mark no area and are left out and counted. JSON of other
kinds is left out. The copy of the picture inside (`imageData`) is not used; parsing past it costs 10 ms a MB.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CollectionError
from ..sample import Record, Shape
from .base import Progress, Refusal, Source, as_it_is, counted, record_of, stem_of, subject_pattern
from .marks import Marks, Pictures, check_kinds, numbers, split_in
from .outlines import outlines

CIRCLE_CORNERS = 64
_LINES = ("line", "linestrip")


@dataclass
class Options:
    """Keys of `options` in a source of layout labelme."""

    images: str | None = None  # folder of the pictures; null: anywhere below the root
    shapes: list[str] = field(default_factory=list)  # of box, polygon, point; empty: all
    flags: bool = False  # keep the picture's flags as labels
    include_unlabelled: bool = False  # pictures without a JSON
    subject_pattern: str | None = None  # one group on the picture's path; default: that path

    def __post_init__(self) -> None:
        check_kinds(self.shapes)


describe = as_it_is  # each JSON speaks of its own picture


def scan(
    root: Path, source: Source, options: Options, progress: Progress | None = None
) -> Iterator[Record | Refusal]:
    """Yield a Record per JSON, in the order of names, then the pictures without one where they are wanted.

    Raises:
        CollectionError: no JSON of LabelMe's form.
        ConfigError: `subject_pattern` is not a pattern with one group.
    """
    pattern = subject_pattern(options.subject_pattern)
    pictures, marks = Pictures(root, options.images), Marks(source.dataset, options.shapes)
    texts = pictures.others if options.images is None else Pictures(root).others
    files = [(name, path) for name, path in texts.items() if name.lower().endswith(".json")]
    known: set[str] = set()
    found = 0
    for file, path in counted(files, source.dataset, progress):
        name, at = file, path
        try:
            said = _read(path)
            if said is None:
                continue
            found += 1
            name = _picture(pictures, said, file)
            at = pictures.paths[name]
            known.add(name)
            yield record_of(
                source,
                name,
                at,
                pattern,
                split=split_in(name),
                shapes=_shapes(said["shapes"], marks),
                labels=_flags(said) if options.flags else {},
            )
        except CollectionError as error:
            yield Refusal(name, at, str(error))
    if not found:
        raise CollectionError(
            f"{root}: no JSON with `shapes` and `imagePath`; layout labelme expects e.g. a.json beside a.jpg"
        )
    for name, at in pictures.paths.items() if options.include_unlabelled else ():
        if name not in known:
            try:
                yield record_of(source, name, at, pattern, split=split_in(name))
            except CollectionError as error:
                yield Refusal(name, at, str(error))
    marks.report()


def _read(path: Path) -> dict[str, Any] | None:
    """The JSON, None when it is of another kind. Raises CollectionError."""
    try:
        said = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CollectionError(f"{path.name}: cannot be read as JSON: {error}") from error
    if not isinstance(said, dict) or not isinstance(said.get("shapes"), list) or "imagePath" not in said:
        return None
    return said


def _picture(pictures: Pictures, said: dict[str, Any], file: str) -> str:
    """Relative name of the picture: the one that the JSON names, or the one with the JSON's own name."""
    near = file.rpartition("/")[0]
    try:
        return pictures.find(str(said["imagePath"]), near)
    except CollectionError:
        try:
            return pictures.of_stem(stem_of(file), near)
        except CollectionError as error:
            inside = (
                "; it is only inside the JSON, labelme_export_json takes it out"
                if said.get("imageData")
                else ""
            )
            raise CollectionError(f"{error}{inside}") from None


def _flags(said: dict[str, Any]) -> dict[str, bool]:
    flags = said.get("flags") or {}
    return {str(name): bool(value) for name, value in flags.items()} if isinstance(flags, dict) else {}


def _shapes(entries: list[Any], marks: Marks) -> tuple[Shape, ...]:
    """Shapes of one picture. Raises CollectionError."""
    used = [entry["group_id"] for entry in entries if isinstance(entry, dict) and _is_group(entry)]
    free = max(used, default=-1) + 1  # groups of masks, whose parts and holes belong together
    shapes: list[Shape] = []
    for number, entry in enumerate(entries):
        label = entry.get("label") if isinstance(entry, dict) else None
        if not isinstance(label, str) or not label.strip():
            raise CollectionError(f"shape {number} has no label; mend the JSON")
        group = entry["group_id"] if _is_group(entry) else None
        kind, label = str(entry.get("shape_type") or "polygon"), label.strip()
        points = _points(entry, kind, label)
        if kind == "mask":
            group = free + number if group is None else group
        shapes += _marked(kind, label, points, group, entry, marks)
    return tuple(shapes)


def _is_group(entry: dict[str, Any]) -> bool:
    return isinstance(entry.get("group_id"), int) and not isinstance(entry["group_id"], bool)


def _points(entry: dict[str, Any], kind: str, label: str) -> list[list[float]]:
    """Pairs (x, y), as many as the kind has. Raises CollectionError."""
    said = entry.get("points")
    if not isinstance(said, list):
        raise CollectionError(f"{kind} {label} has no points; mend the JSON")
    points = [numbers(point, f"point of {kind} {label}", 2) for point in said]
    least = {"rectangle": 2, "circle": 2, "mask": 2, "point": 1}.get(kind)
    if least is not None and len(points) != least and not (kind == "rectangle" and len(points) == 4):
        raise CollectionError(f"{kind} {label} has {len(points)} points, expected {least}; mend the JSON")
    return points


def _marked(
    kind: str, label: str, points: list[list[float]], group: int | None, entry: dict[str, Any], marks: Marks
) -> list[Shape]:
    """Shapes of one entry. Raises CollectionError."""
    if kind == "rectangle":
        x, y = zip(*points, strict=True)
        return marks.box(label, min(x), min(y), max(x), max(y), group)
    if kind == "polygon":
        return marks.polygon(label, [value for point in points for value in point], group)
    if kind in ("point", "points"):
        return [shape for x, y in points for shape in marks.point(label, x, y, group)]
    if kind == "circle":
        (x, y), rim = points
        radius = math.dist((x, y), rim)
        angles = [2 * math.pi * number / CIRCLE_CORNERS for number in range(CIRCLE_CORNERS)]
        corners = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]
        return marks.polygon(
            label, [value for corner in corners for value in corner] if radius else [], group
        )
    if kind == "mask":
        offset = (round(min(y for _, y in points)), round(min(x for x, _ in points)))
        parts = outlines(_mask(entry.get("mask"), label), offset)
        return [shape for part in parts for shape in marks.outline(label, part, group)]
    if kind in _LINES:
        marks.left_out["lines"] += 1
        return []
    raise CollectionError(f"shape {label}: unknown shape_type {kind[:30]!r}; export it as an outline")


def _mask(text: Any, label: str) -> np.ndarray:
    """The mask of a shape, a PNG as base64. Raises CollectionError."""
    from PIL import Image as Pillow

    try:
        with Pillow.open(io.BytesIO(base64.b64decode(text, validate=True))) as picture:
            return np.asarray(picture.convert("L")) > 0
    except (TypeError, binascii.Error, OSError, ValueError, Pillow.DecompressionBombError) as error:
        raise CollectionError(f"mask {label}: no PNG that can be read; mend the JSON") from error
