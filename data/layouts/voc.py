"""Pascal VOC's XML: boxes of one picture a file, splits in ImageSets, label maps in SegmentationClass.

Everingham et al., IJCV 88:303 (2010). A box's corners are numbers of pixels, counted from 1, both inside: 1
and 10 become 0 and 10, the edges of ten pixels. Tools that count from 0 want `first_pixel: 0`. The picture of
an XML is the one with the same file name; `filename` inside, which many copies get wrong, comes second. XML
with a DOCTYPE is refused: entities could grow without end. Costs about 0.2 ms a file.
"""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import CollectionError, ConfigError
from ..sample import Record, Shape
from .base import (
    SPLITS,
    Progress,
    Refusal,
    Source,
    as_it_is,
    counted,
    has_suffix,
    record_of,
    stem_of,
    subject_pattern,
)
from .marks import Marks, Pictures, numbers, split_in

logger = logging.getLogger(__name__)


@dataclass
class Options:
    """Keys of `options` in a source of layout voc."""

    images: str | None = None  # folder of the pictures; null: anywhere below the root
    masks: str | None = None  # folder of label maps with the pictures' names, e.g. SegmentationClass
    first_pixel: int = 1  # number of the first pixel in a row
    include_unlabelled: bool = False  # pictures without an XML
    subject_pattern: str | None = None  # one group on the picture's path; default: that path

    def __post_init__(self) -> None:
        if self.first_pixel not in (0, 1):
            raise ConfigError(f"first_pixel: {self.first_pixel}; the first pixel of a row is number 0 or 1")


describe = as_it_is  # each XML speaks of its own picture


def scan(
    root: Path, source: Source, options: Options, progress: Progress | None = None
) -> Iterator[Record | Refusal]:
    """Yield a Record per XML, in the order of names, then the pictures without one where they are wanted.

    Raises:
        CollectionError: no XML of VOC's form, or an ImageSets file that contradicts another.
        ConfigError: `subject_pattern` is not a pattern with one group.
    """
    pattern = subject_pattern(options.subject_pattern)
    pictures, marks = Pictures(root, options.images), Marks(source.dataset)
    texts = dict(pictures.others if options.images is None else Pictures(root).others)
    sets, masks = _sets(texts), _masks(root, options)
    files = [(name, path) for name, path in texts.items() if name.lower().endswith(".xml")]
    if not files:
        raise CollectionError(f"{root}: no XML below it; layout voc expects e.g. Annotations/000001.xml")
    items: list[tuple[str, Path | None]] = list(files)
    if options.include_unlabelled:
        known = {stem_of(name) for name, _ in files}
        items += [(name, None) for name in pictures.paths if stem_of(name) not in known]
    for file, path in counted(items, source.dataset, progress):
        name, at, stem = file, path or pictures.paths[file], stem_of(file)
        shapes: tuple[Shape, ...] = ()
        try:
            if path is not None:
                entry = _annotation(path)
                name = _picture(pictures, entry, file)
                at = pictures.paths[name]
                shapes = _shapes(entry, marks, options.first_pixel)
            split = sets.get(stem) or split_in(name)
            yield record_of(source, name, at, pattern, split=split, mask=masks.get(stem), shapes=shapes)
        except CollectionError as error:
            yield Refusal(name, at, str(error))
    marks.report()


def parse_xml(data: bytes, name: str) -> ElementTree.Element:
    """The root element. Raises CollectionError for broken XML, and for any with a DOCTYPE."""
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise CollectionError(f"{name}: declares a DOCTYPE, which is not read; remove it")
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError) as error:
        raise CollectionError(f"{name}: cannot be read as XML ({error}); export it again") from error


def _annotation(path: Path) -> ElementTree.Element:
    try:
        entry = parse_xml(path.read_bytes(), path.name)
    except OSError as error:
        raise CollectionError(
            f"{path.name}: cannot be opened ({error.strerror}); check its rights"
        ) from error
    if entry.tag != "annotation":
        raise CollectionError(
            f"{path.name}: its root is <{entry.tag[:40]}>, expected <annotation>; exclude it"
        )
    return entry


def _picture(pictures: Pictures, entry: ElementTree.Element, file: str) -> str:
    near = file.rpartition("/")[0]
    try:
        return pictures.of_stem(stem_of(file), near)
    except CollectionError:
        text = entry.findtext("filename") or ""
        if not text:
            raise
        return pictures.find(text, near)


def _shapes(entry: ElementTree.Element, marks: Marks, first: int) -> tuple[Shape, ...]:
    """Boxes of the objects; those of their parts are left out. Raises CollectionError."""
    shapes: list[Shape] = []
    for item in entry.findall("object"):
        label = (item.findtext("name") or "").strip()
        if not label:
            raise CollectionError("an object has no name; mend the XML")
        box = item.find("bndbox")
        if box is None:
            raise CollectionError(f"object {label} has no bndbox; mend the XML")
        corners = [box.findtext(key) for key in ("xmin", "ymin", "xmax", "ymax")]
        left, top, right, bottom = numbers(corners, f"bndbox of {label}", 4)
        # Counted from 1 both corners' pixels are inside; counted from 0 the tools write edges.
        shapes += marks.box(label, left - first, top - first, right, bottom)
    return tuple(shapes)


def _sets(texts: dict[str, Path]) -> dict[str, str]:
    """Split by file name without suffix, from ImageSets/*/train.txt, val.txt and test.txt."""
    found: dict[str, str] = {}
    for name, path in texts.items():
        folders, _, file = name.rpartition("/")
        split = file.removesuffix(".txt").lower()
        if "imagesets" not in folders.lower().split("/") or split not in SPLITS:
            continue
        for line in path.read_text(encoding="utf-8-sig", errors="replace").split("\n"):
            words = line.split()
            if words and found.setdefault(words[0], split) != split:
                raise CollectionError(
                    f"{path}: {words[0]} is in {split} and in {found[words[0]]}; mend the sets"
                )
    return found


def _masks(root: Path, options: Options) -> dict[str, Path]:
    """Label maps by file name without suffix. Raises CollectionError when the folder is missing."""
    if options.masks is None:
        return {}
    folder = root / options.masks
    if not folder.is_dir():
        raise CollectionError(f"{folder}: no such folder (options.masks)")
    return {stem_of(path.name): path for path in sorted(folder.iterdir()) if has_suffix(path.name, (".png",))}
