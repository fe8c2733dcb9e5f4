"""YOLO's text files: a line an object, `class x y width height`, or `class x1 y1 x2 y2 ...` for an outline.

As Ultralytics reads them: the labels of `images/train/a.jpg` are in `labels/train/a.txt`, else beside it; a
picture without a text file shows no object. Coordinates are shares of the picture's sides, so its size is
read from its header, as displayed (EXIF), without pixels: 0.1 ms a picture. Names of the classes come from
the options, from data.yaml (any YAML with `names` in the root), or from classes.txt.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ..errors import CollectionError
from ..sample import Record, Shape
from .base import Progress, Refusal, Source, as_it_is, counted, record_of, stem_of, subject_pattern
from .marks import Marks, Pictures, check_kinds, normal, numbers, split_in

_NAME_FILES = ("classes.txt", "obj.names", "labels.txt")
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange the sides


@dataclass
class Options:
    """Keys of `options` in a source of layout yolo."""

    names: list[str] = field(default_factory=list)  # of the classes, from 0; empty: from data.yaml
    images: str | None = None  # folder of the pictures; null: anywhere below the root
    shapes: list[str] = field(default_factory=list)  # of box, polygon; empty: all
    subject_pattern: str | None = None  # one group on the picture's path; default: that path

    def __post_init__(self) -> None:
        check_kinds(self.shapes)


describe = as_it_is  # the names of the classes are those of shapes


def scan(
    root: Path, source: Source, options: Options, progress: Progress | None = None
) -> Iterator[Record | Refusal]:
    """Yield a Record per picture, in the order of names.

    Raises:
        CollectionError: no text file below the root, or no names of the classes.
        ConfigError: `subject_pattern` is not a pattern with one group.
    """
    pattern = subject_pattern(options.subject_pattern)
    pictures, marks = Pictures(root, options.images), Marks(source.dataset, options.shapes)
    texts = dict(pictures.others if options.images is None else Pictures(root).others)
    config = _config(root, texts)
    names = _names(root, options, config, texts)
    splits = _splits(pictures.paths, config)
    found = 0
    for name, path in counted(list(pictures.paths.items()), source.dataset, progress):
        labels = texts.get(_beside_images(name)) or texts.get(_without_suffix(name) + ".txt")
        found += labels is not None
        split = next((split for folder, split in splits if name.startswith(folder)), None) or split_in(name)
        try:
            shapes = _shapes(labels, path, names, marks) if labels is not None else ()
            yield record_of(source, name, path, pattern, split=split, shapes=shapes)
        except CollectionError as error:
            yield Refusal(name, path, str(error))
    if pictures.paths and not found:
        raise CollectionError(
            f"{root}: no picture has a text file; layout yolo expects labels/a.txt for images/a.jpg"
        )
    marks.report()


def displayed_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture as displayed, from its header. Raises CollectionError."""
    from PIL import Image as Pillow

    try:
        with path.open("rb") as stream:
            with Pillow.open(stream) as picture:
                width, height = picture.size  # of a TIFF as displayed, of others as stored
                if picture.format == "TIFF":
                    return height, width
                exif = Pillow.Exif() if picture.format == "PNG" else picture.getexif()
                if picture.format == "PNG" and (data := _png_exif(stream)):
                    exif.load(b"Exif\0\0" + data)
            turned = exif.get(_ORIENTATION, 1) in _TURNED
    except Exception as error:  # damaged headers raise many kinds
        line = " ".join(str(error).split())[:80]
        raise CollectionError(f"its header cannot be read ({line}); copy or download it again") from error
    return (width, height) if turned else (height, width)


def _png_exif(stream: IO[bytes]) -> bytes:
    """The eXIf chunk of a PNG, wherever it lies; Pillow would decode the pixels to look behind them."""
    stream.seek(8)
    while len(head := stream.read(8)) == 8:
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"eXIf":
            return stream.read(length)
        stream.seek(length + 4, os.SEEK_CUR)
    return b""


def _shapes(labels: Path, picture: Path, names: dict[int, str], marks: Marks) -> tuple[Shape, ...]:
    """Shapes of one text file, in pixels. Raises CollectionError."""
    try:
        lines = labels.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CollectionError(f"{labels.name}: cannot be read as text ({error}); copy it again") from error
    shapes: list[Shape] = []
    size: tuple[int, int] | None = None
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        what = f"{labels.name} line {number}"
        size = size or displayed_size(picture)
        if not words[0].isdecimal() or int(words[0]) not in names:
            raise CollectionError(f"{what}: class {words[0][:20]!r}, expected one of 0 to {max(names)}")
        values, label = numbers(words[1:], what), names[int(words[0])]
        height, width = size
        if len(values) == 4:
            x, y, w, h = values[0] * width, values[1] * height, values[2] * width, values[3] * height
            shapes += marks.box(label, x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        elif len(values) >= 6 and len(values) % 2 == 0:
            xy = [value * (height if place % 2 else width) for place, value in enumerate(values)]
            shapes += marks.polygon(label, xy)
        else:
            raise CollectionError(
                f"{what}: {len(values)} numbers, expected x y width height or the corners of an outline"
            )
    return tuple(shapes)


def _beside_images(name: str) -> str:
    """`labels/train/a.txt` of `images/train/a.jpg`: the last folder of that name counts."""
    parts = _without_suffix(name).split("/")
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return "/".join(parts) + ".txt"


def _without_suffix(name: str) -> str:
    return name[: name.rfind("/") + 1] + stem_of(name)


def _config(root: Path, texts: dict[str, Path]) -> dict[str, Any]:
    """The one YAML of the root that has `names`; empty when there is none."""
    import yaml

    found = {}
    for name, path in texts.items():
        if "/" in name or not name.lower().endswith((".yaml", ".yml")):
            continue
        try:
            facts = yaml.safe_load(path.read_bytes())
        except (OSError, yaml.YAMLError) as error:
            line = " ".join(str(error).split())[:120]
            raise CollectionError(f"{path}: cannot be read as YAML ({line}); mend it") from error
        if isinstance(facts, dict) and "names" in facts:
            found[name] = facts
    if len({repr(facts["names"]) for facts in found.values()}) > 1:
        raise CollectionError(f"{root}: {', '.join(found)} name the classes differently; set options.names")
    return next(iter(found.values()), {})


def _names(root: Path, options: Options, config: dict[str, Any], texts: dict[str, Path]) -> dict[int, str]:
    said: Any = options.names or config.get("names")
    if not said:
        for file in _NAME_FILES:
            for name, path in texts.items():
                if name.rpartition("/")[2] == file:
                    said = said or [
                        line.strip() for line in path.read_text("utf-8-sig").split("\n") if line.strip()
                    ]
    pairs = said.items() if isinstance(said, dict) else enumerate(said) if isinstance(said, list) else ()
    try:
        names = {int(number): str(name) for number, name in pairs}
    except (TypeError, ValueError) as error:
        raise CollectionError(
            f"{root}: `names` of the YAML has no whole numbers: {error}; mend it"
        ) from error
    if not names:
        raise CollectionError(
            f"{root}: no names of the classes; write options: {{names: [...]}} or a data.yaml"
        )
    return names


def _splits(pictures: Iterable[str], config: dict[str, Any]) -> list[tuple[str, str]]:
    """(folder, split) of the YAML's `train`, `val` and `test`, the longest folder first."""
    base = str(config.get("path") or "").replace("\\", "/")
    found = []
    for split in ("train", "val", "test"):
        entries = config.get(split)
        for entry in entries if isinstance(entries, list) else [entries] if entries else []:
            text = str(entry).replace("\\", "/")
            for place in (f"{base}/{text}", text, text.replace("../", "")):  # Roboflow's are one level off
                folder = normal(place)
                if any(name.startswith(f"{folder}/") for name in pictures):
                    found.append((f"{folder}/", split))
                    break
    return sorted(found, key=lambda pair: -len(pair[0]))
