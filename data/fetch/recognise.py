"""Which layout unpacked files have, and the collection's YAML for them.

Of the Decathlon and MedMNIST the layout is known. Of all others it is recognised from what lies there: a
dataset.json, a BIDS description, DICOM files, folders that are classes; else every image goes into a table
(`images.csv`), with the mask of the same name from a folder beside it. What is written is scanned at once: a
YAML that finds no image is not kept. Nothing is opened but JSON and first bytes, about 10 us a file.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..atomic import csv_text, write_text
from ..catalog import Dataset
from ..errors import CollectionError
from ..interop import archive
from ..layouts import LAYOUTS
from ..layouts.base import SPLITS, has_suffix, parse_split, stem_of, walk
from ..sample import Modality

TABLE = "images.csv"
_MASKS = re.compile(r"masks?|annotations?|segmentations?|labelled", re.IGNORECASE)  # as a word of the name
_MASKS_ALONE = re.compile(r"labels?|seg|gt|ground[\W_]*truths?", re.IGNORECASE)  # as the whole name
_PLAIN = re.compile(
    r"(images?|imgs?|data|files?|photos?|pictures?|scans?|dicom|set|part)[\W_\d]*", re.IGNORECASE
)
_LOSSY = (".jpg", ".jpeg")


@dataclass(slots=True)
class Guess:
    """One source, as it goes into the YAML."""

    layout: str
    root: Path
    options: dict[str, Any] = field(default_factory=dict)
    exclude: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # for the reader of the YAML
    table: list[dict[str, str]] = field(default_factory=list)  # rows of images.csv


def guesses(base: Path) -> Iterator[Guess]:
    """Layouts that the files below `base` may have, the surest first."""
    names = [name for name, _ in walk(base)]
    yield from _described(base, names)
    dicom = [name for name in names if _is_dicom(base, name)]
    images = [name for name in names if _is_image(name)]
    if len(dicom) > len(images):
        base, dicom = _descended(base, dicom)
        masked = sorted({part for name in dicom for part in PurePosixPath(name).parts[:-1] if _is_mask(part)})
        exclude = [f"*{part}/*" for part in masked]
        yield Guess("dicom_tree", base, exclude=exclude, notes=_left_out(masked))
    elif images:
        base, images = _descended(base, images)
        yield from _classes(base, images)
        yield from _table(base, images)


def write(
    folder: Path, name: str, dataset: Dataset, guess: Guess, command: str, licence: str | None = None
) -> Path:
    """Write `folder/collection.yaml` for the guess, and its table; returns the YAML."""
    from omegaconf import OmegaConf

    if guess.table:  # beside the YAML: the images' own folder stays as it was unpacked
        guess.options["file"] = os.path.relpath(folder / TABLE, guess.root)
    modality = next((word for word in dataset.modalities if isinstance(word, Modality)), None)
    source: dict[str, Any] = {
        "dataset": dataset.id[:60],
        "layout": guess.layout,
        "root": _relative(guess.root, folder),
        "modality": None if modality is None or guess.layout == "dicom_tree" else str(modality),
        "organ": str(dataset.organs[0]) if dataset.organs else None,
        "licence": licence or dataset.licence or "unknown",
        "exclude": guess.exclude,
        "options": guess.options,
    }
    source = {key: value for key, value in source.items() if value not in (None, [], {})}
    notes = [
        f"Written by `{command}`. Yours to edit: it is not written again while it is there.",
        f"{dataset.name}. {dataset.homepage}".strip(),
        *guess.notes,
    ]
    if len(dataset.modalities) > 1 and source.get("modality"):
        notes.append(f"The dataset holds {', '.join(dataset.modalities)}; `modality` names the first.")
    text = "".join(f"# {line}\n" for line in notes)
    text += OmegaConf.to_yaml(OmegaConf.create({"name": name, "root": ".", "sources": [source]}))
    if guess.table:
        write_text(folder / TABLE, csv_text(guess.table))
    path = folder / "collection.yaml"
    write_text(path, text)
    return path


def count(collection: Path) -> tuple[int, int]:
    """(images that the collection finds, images that it refuses). Raises CollectionError, ConfigError."""
    from ..collection import Collection, scan

    found = scan(Collection.load(collection))
    return len(found.records), len(found.failures)


def _described(base: Path, names: list[str]) -> Iterator[Guess]:
    """What a file of the dataset itself says."""
    for name in sorted((n for n in names if n.endswith("dataset.json")), key=lambda n: n.count("/")):
        try:
            facts = json.loads((base / name).read_text(encoding="utf-8-sig"))
        except (OSError, ValueError):
            continue
        root = (base / name).parent
        if isinstance(facts, dict) and ("channel_names" in facts or "file_ending" in facts):
            yield Guess("nnunet_raw", root)
        elif isinstance(facts, dict) and isinstance(facts.get("training"), list):
            yield Guess("msd", root)
    for name in (n for n in names if n.endswith(".npz")):
        try:
            if "train_images.npy" in archive.opened(base / name).names():
                yield Guess("medmnist", (base / name).parent)
        except Exception:  # an .npz of any other kind, or none: not this layout
            continue
    if "bids" in LAYOUTS:
        for name in names:
            if name.rpartition("/")[2] == "dataset_description.json":
                yield Guess("bids", (base / name).parent)


def _descended(base: Path, names: list[str]) -> tuple[Path, list[str]]:
    """The folder that holds them all, and the names below it."""
    common = PurePosixPath(os.path.commonpath([f"{PurePosixPath(name).parent}/" for name in names]))
    return base / common, [PurePosixPath(name).relative_to(common).as_posix() for name in names]


def _classes(base: Path, images: list[str]) -> Iterator[Guess]:
    """Folders that are classes, perhaps below folders that are splits."""
    tops = {name.split("/")[0] for name in images}
    splits = all(_is_split(top) for top in tops)
    if not all(name.count("/") >= 1 + splits for name in images):
        return
    level = {name.split("/")[1] for name in images} if splits else tops
    if len(level) < 2 or any(_PLAIN.fullmatch(word) or _is_mask(word) or _is_split(word) for word in level):
        return
    yield Guess("image_folder", base, {"split_folders": True} if splits else {})


def _table(base: Path, images: list[str]) -> Iterator[Guess]:
    """Every image, with the mask of the same name from a folder beside its own."""
    masks: dict[tuple[str, str], list[str]] = {}
    pictures: list[str] = []
    for name in images:
        folders = PurePosixPath(name).parts[:-1]
        place = next((i for i, part in enumerate(folders) if _is_mask(part)), None)
        if place is None:
            pictures.append(name)
        else:
            masks.setdefault(("/".join(folders[:place]), stem_of(name)), []).append(name)
    if not pictures:
        return
    guess = Guess("table", base, {"path": "path"})
    used = 0
    for name in pictures:
        folders = PurePosixPath(name).parts[:-1]
        near = ("/".join(folders[:-1]), stem_of(name))
        own = [mask for mask in masks.get(near, []) if not has_suffix(mask, _LOSSY)]
        used += len(own) == 1
        split = next((parse_split(part) for part in folders if _is_split(part)), "")
        guess.table.append({"path": name, "mask": own[0] if len(own) == 1 else "", "split": split})
    if used:
        guess.options["mask"] = "mask"
    if any(row["split"] for row in guess.table):
        guess.options["split"] = "split"
    left = Counter(PurePosixPath(name).parts[-2] for several in masks.values() for name in several)
    if sum(left.values()) > used:
        guess.notes = _left_out(
            sorted(left), "JPEG is no label map, or not exactly one has the name of an image beside it"
        )
    yield guess


def _left_out(folders: list[str], why: str = "layout dicom_tree reads images only") -> list[str]:
    return [f"Left out, as they look like annotations: {', '.join(folders)}; {why}."] if folders else []


def _is_mask(part: str) -> bool:
    words = re.split(r"[\W_\d]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", part))  # leftMask, MASKS_DICOM
    return any(map(_MASKS.fullmatch, words)) or _MASKS_ALONE.fullmatch(part) is not None


def _is_split(part: str) -> bool:
    try:
        return parse_split(part) in SPLITS
    except CollectionError:
        return False


def _is_image(name: str) -> bool:
    from ..readers import SUFFIXES

    suffix = max((one for one in SUFFIXES if has_suffix(name, (one,))), key=len, default="")
    return SUFFIXES.get(suffix) in ("raster", "nifti", "itk", "slide")


def _is_dicom(base: Path, name: str) -> bool:
    if has_suffix(name, (".dcm", ".dicom", ".ima")):
        return True
    if "." in name.rpartition("/")[2].lstrip("."):
        return False
    with (base / name).open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _relative(root: Path, folder: Path) -> str:
    try:
        return root.relative_to(folder).as_posix()
    except ValueError:
        return str(root)
