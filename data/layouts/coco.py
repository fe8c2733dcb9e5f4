"""COCO's JSON: boxes, outlines, run lengths and key points of many pictures in one file.

Lin et al., ECCV 2014, and cocodataset.org/#format-data. Coordinates are as in a Shape already: 0 is the upper
left corner of the first pixel. All shapes of one annotation share a group; run lengths become outlines that
draw the same pixels again (outlines.py). Pictures that the JSON does not list are left out. The values of
label maps (`masks_from: polygons`) are the categories' ids. The JSON is in memory for the scan, at ten times
its size.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import CollectionError
from ..sample import Record, Shape
from .base import Progress, Refusal, Source, counted, record_of, subject_pattern
from .marks import Marks, Pictures, check_kinds, check_splits, numbers, split_in
from .outlines import decode_runs, outlines

_CATEGORY_VALUES = range(1, 1 << 16)


@dataclass
class Options:
    """Keys of `options` in a source of layout coco."""

    annotations: list[str] = field(default_factory=list)  # JSON files below the root; empty: those found
    images: str | None = None  # folder of the pictures; null: anywhere below the root
    splits: dict[str, str] = field(default_factory=dict)  # {file: split}; else its path's words say it
    shapes: list[str] = field(default_factory=list)  # of box, polygon, point; empty: all
    subject_pattern: str | None = None  # one group on the picture's path; default: that path

    def __post_init__(self) -> None:
        check_kinds(self.shapes)
        check_splits(self.splits, "splits")


def describe(source: Source) -> Source:
    """Name the values of masks after the categories, where the collection does not."""
    if source.mask_classes:
        return source
    categories: dict[int, str] = {}
    for name, path in _files(source.root, source.options):
        for number, category in _categories(_read(path), name).items():
            if categories.setdefault(number, category["name"]) != category["name"]:
                raise CollectionError(
                    f"{path}: category {number} is {category['name']}, in another file {categories[number]}; "
                    "list files that agree in options.annotations"
                )
    if not all(number in _CATEGORY_VALUES for number in categories):  # from 0: that is the background's
        categories = dict(enumerate(categories.values(), 1))
    return replace(source, mask_classes=dict(sorted(categories.items())))


def scan(
    root: Path, source: Source, options: Options, progress: Progress | None = None
) -> Iterator[Record | Refusal]:
    """Yield a Record per picture that the JSON files list.

    Raises:
        CollectionError: no JSON of COCO's form, or a picture is listed in two of them.
        ConfigError: `subject_pattern` is not a pattern with one group.
    """
    pattern = subject_pattern(options.subject_pattern)
    pictures = Pictures(root, options.images)
    marks = Marks(source.dataset, options.shapes)
    listed: dict[str, str] = {}
    for file, path in _files(root, options):
        facts = _read(path)
        categories, by_image = _categories(facts, file), _by_image(facts, path)
        split = options.splits.get(file) or split_in(file)
        near = "/".join(filter(None, (file.rpartition("/")[0], split)))
        for number, image in enumerate(counted(facts["images"], f"{source.dataset} {file}", progress)):
            name, at = f"{file}:{number}", path
            try:
                name = pictures.find(_file_name(image), near)
                at = pictures.paths[name]
                shapes = _shapes(by_image.get(_identifier(image), []), categories, image, marks)
                record = record_of(source, name, at, pattern, split=split, shapes=shapes)
            except CollectionError as error:
                yield Refusal(name, at, str(error))
                continue
            if listed.setdefault(name, file) != file:
                raise CollectionError(
                    f"{path}: lists {name}, as {listed[name]} does; name one of them in options.annotations"
                )
            yield record
    marks.report()


def _file_name(image: Any) -> str:
    text = image.get("file_name") if isinstance(image, dict) else None
    if not isinstance(text, str) or not text:
        raise CollectionError(f"image {str(image)[:60]} has no file_name; export the JSON again")
    return text


def _files(root: Path, options: Options) -> list[tuple[str, Path]]:
    """(relative name, path) of the annotation files. Raises CollectionError."""
    if options.annotations:
        found = {}
        for text in options.annotations:
            hits = sorted(root.glob(text)) if re.search(r"[*?\[]", text) else [root / text]
            if not hits or not all(hit.is_file() for hit in hits):
                raise CollectionError(f"{root / text}: no such file (options.annotations)")
            found |= {hit.relative_to(root).as_posix(): hit for hit in hits}
        return sorted(found.items())
    found = {
        name: path
        for pattern in ("*.json", "*/*.json", "annotations/*/*.json")
        for path in root.glob(pattern)
        if not (name := path.relative_to(root).as_posix()).startswith(".") and _is_coco(path)
    }
    if not found:
        raise CollectionError(
            f"{root}: no JSON with `images` and `annotations`; layout coco expects e.g. "
            "annotations/instances_train.json (options.annotations)"
        )
    return sorted(found.items())


def _is_coco(path: Path) -> bool:
    """Whether a JSON holds `images` and `categories` or `annotations`; a look at 64 kB, and at its end."""
    with path.open("rb") as stream:
        head = stream.read(1 << 16)
        if len(head) == 1 << 16:
            stream.seek(max(1 << 16, path.stat().st_size - (1 << 16)))
            head += stream.read()
    return b'"images"' in head and (b'"annotations"' in head or b'"categories"' in head)


def _read(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CollectionError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(facts, dict) or not isinstance(facts.get("images"), list):
        raise CollectionError(f"{path}: has no list `images`; layout coco needs one")
    return facts


def _list(facts: dict[str, Any], key: str, name: str) -> list[Any]:
    said = facts.get(key) or []
    if not isinstance(said, list):
        raise CollectionError(f"{name}: `{key}` is not a list; export it again")
    return said


def _categories(facts: dict[str, Any], name: str) -> dict[int, dict[str, Any]]:
    found = {}
    for category in _list(facts, "categories", name):
        if not isinstance(category, dict) or not isinstance(category.get("id"), int):
            raise CollectionError(f"{name}: category {str(category)[:60]} has no whole number as its id")
        points = category.get("keypoints")
        known = {"name": str(category.get("name", category["id"])), "keypoints": points}
        found[category["id"]] = known if isinstance(points, list) else known | {"keypoints": []}
    return found


def _by_image(facts: dict[str, Any], path: Path) -> dict[Any, list[tuple[int, dict[str, Any]]]]:
    """Annotations of each image's id, with their number among its own."""
    found: dict[Any, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    ids = {_identifier(image) for image in facts["images"]}
    for entry in _list(facts, "annotations", str(path)):
        number = _identifier(entry, "image_id")
        if number is None or number not in ids:
            raise CollectionError(f"{path}: annotation {str(entry)[:60]} is of no image that is listed")
        mine = found[number]
        mine.append((len(mine), entry))
    return found


def _identifier(entry: Any, key: str = "id") -> int | str | None:
    number = entry.get(key) if isinstance(entry, dict) else None
    return number if isinstance(number, int | str) else None


def _shapes(
    entries: list[tuple[int, dict[str, Any]]],
    categories: dict[int, dict[str, Any]],
    image: dict[str, Any],
    marks: Marks,
) -> tuple[Shape, ...]:
    """Shapes of one picture. Raises CollectionError."""
    shapes: list[Shape] = []
    for group, entry in entries:
        number = entry.get("category_id")
        category = categories.get(number) if isinstance(number, int) else None
        if category is None:
            raise CollectionError(f"category {str(number)[:20]} is not among `categories`")
        label = category["name"]
        if entry.get("bbox"):
            x, y, width, height = numbers(entry["bbox"], f"bbox of {label}", 4)
            shapes += marks.box(label, x, y, x + width, y + height, group)
        shapes += _segments(entry.get("segmentation"), label, group, image, marks)
        shapes += _key_points(entry, category, group, marks)
    return tuple(shapes)


def _segments(said: Any, label: str, group: int, image: dict[str, Any], marks: Marks) -> list[Shape]:
    if not said:
        return []
    if isinstance(said, list):
        parts = said if isinstance(said[0], list) else [said]
        return [
            shape
            for part in parts
            for shape in marks.polygon(label, numbers(part, f"outline of {label}"), group)
        ]
    size, counts = (said.get("size"), said.get("counts")) if isinstance(said, dict) else (None, None)
    if not isinstance(counts, list | str):
        raise CollectionError(f"segmentation of {label}: {str(said)[:60]}, expected outlines or run lengths")
    rows, columns = numbers(size, f"size of the run lengths of {label}", 2)
    for key, wanted in (("height", rows), ("width", columns)):
        if image.get(key) not in (None, wanted):
            raise CollectionError(
                f"run lengths of {label} are {rows:g} x {columns:g}, its image {image.get('height')} x "
                f"{image.get('width')}; export them again"
            )
    mask = decode_runs(counts, (int(rows), int(columns)))
    return [shape for points in outlines(mask) for shape in marks.outline(label, points, group)]


def _key_points(entry: dict[str, Any], category: dict[str, Any], group: int, marks: Marks) -> list[Shape]:
    """Landmarks x, y, v; v = 0 means that it is not marked."""
    said = entry.get("keypoints")
    if not said:
        return []
    names = category["keypoints"]
    values = numbers(said, f"keypoints of {category['name']}", 3 * len(names) if names else None)
    if len(values) % 3:
        raise CollectionError(f"keypoints of {category['name']}: {len(values)} numbers, expected triples")
    shapes = []
    for number in range(len(values) // 3):
        x, y, visible = values[3 * number : 3 * number + 3]
        if visible:
            name = str(names[number]) if names else f"{category['name']} {number}"
            shapes += marks.point(name, x, y, group)
    return shapes
