"""MedMNIST v2 and MedMNIST+: one .npz a set, with images and labels of train, val and test.

Yang et al., Scientific Data 10:41 (2023), doi:10.1038/s41597-022-01721-8. All eighteen sets, 2D and 3D, of
any size: the axes come from the arrays' shapes, which are read without the images. Modality, names of classes
and kind of task come from the catalogue by the file's name; an .npz of the same form with another name keeps
its numbers. An image is a row of its array (interop/stacked.py), and its name does not depend on the size.

Labels: "class" for one of several and for two classes; of RetinaMNIST's ordered grades also "grade", the
number; several at once (ChestMNIST) are the list "findings". MedMNIST does not say whose an image is: every
one is its own subject. That costs about 10 us an image.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..annotations.kinds import LabelKind
from ..errors import CollectionError, ConfigError, ReadError, nearest
from ..interop import archive
from ..sample import Given, Record
from .base import SPLITS, Progress, Refusal, Source, counted

if TYPE_CHECKING:
    from ..catalog import MedMnistSet

SIZES = (28, 64, 128, 224)
_NAME = re.compile(r"(?P<name>.+?)(?:_(?P<size>64|128|224))?")
_AXES = {2: "HW", 3: "DHW"}  # of one image without colours


@dataclass
class Options:
    """Keys of `options` in a source of layout medmnist."""

    subset: str | None = None  # e.g. pathmnist; needed when the folder holds several
    size: int | None = None  # 28, 64, 128 or 224; needed when the folder holds several

    def __post_init__(self) -> None:
        if self.size is not None and self.size not in SIZES:
            raise ConfigError(f"size: {self.size}; MedMNIST comes in {', '.join(map(str, SIZES))}")


def describe(source: Source) -> Source:
    """Fill modality, licence and kinds of labels from the catalogue where they are not stated."""
    known = _known(_subset(_file(source.root, source.options)))
    if known is None:
        return source
    licence = known.licence if source.licence == "unknown" else source.licence
    kinds = _kinds(known) | source.label_kinds
    return replace(
        source, modality=source.modality or known.modality, licence=licence or "unknown", label_kinds=kinds
    )


def scan(
    root: Path, source: Source, options: Options, progress: Progress | None = None
) -> Iterator[Record | Refusal]:
    """Yield a Record per image.

    Raises:
        CollectionError: no .npz, or several and none is named; arrays that are missing or do not match.
    """
    path = _file(root, options)
    known = _known(_subset(path))
    for split in SPLITS:
        axes, labels = _split(path, split)
        width = len(str(len(labels) - 1))
        given = Given(axes=axes)
        address = f"{path}{archive.SEPARATOR}{split}_images.npy{archive.SEPARATOR}"
        for number, row in enumerate(counted(labels, f"{source.dataset} {split}", progress)):
            name = f"{split}/{number:0{width}d}"
            try:
                said = labels_of(row, known)
            except CollectionError as error:
                yield Refusal(name, Path(f"{address}{number}.npy"), str(error))
                continue
            yield Record(
                dataset=source.dataset,
                name=name,
                subject=name,
                paths=(Path(f"{address}{number}.npy"),),
                modality=source.modality,
                organ=source.organ,
                licence=source.licence,
                split=split,
                labels=said,
                given=given,
            )


def labels_of(row: Any, known: MedMnistSet | None) -> dict[str, Any]:
    """Labels of one image from its row of numbers. Raises CollectionError for a class that there is not."""
    names = known.labels if known else {}
    several = "multi-label" in known.task if known else len(row) > 1
    if several:
        if names and len(row) != len(names):
            raise CollectionError(f"{len(row)} labels, expected one for each of {len(names)} findings")
        return {"findings": [names.get(place, str(place)) for place, value in enumerate(row) if value]}
    value = row[0]
    if names and value not in names:
        raise CollectionError(f"label {value} is not among the classes 0 to {max(names)}; download it again")
    said: dict[str, Any] = {"class": names.get(value, str(value))}
    return said | ({"grade": value} if known and known.task.startswith("ordinal") else {})


def _kinds(known: MedMnistSet) -> dict[str, LabelKind]:
    names = tuple(name for _, name in sorted(known.labels.items()))
    if "multi-label" in known.task:
        return {"findings": LabelKind(kind="multi-label", values=names)}
    kinds = {"class": LabelKind(kind="single", values=names)}
    if known.task.startswith("ordinal"):
        kinds["grade"] = LabelKind(kind="ordinal", values=tuple(sorted(known.labels)))
    return kinds


def _file(root: Path, options: Options) -> Path:
    """The one .npz that is meant. Raises CollectionError."""
    found = {path.stem: path for path in sorted(root.glob("*.npz")) if not path.name.startswith(".")}
    if not found:
        raise CollectionError(
            f"{root}: no .npz; layout medmnist expects e.g. pathmnist.npz or pathmnist_64.npz"
        )
    chosen = [
        path
        for path in found.values()
        if options.subset in (None, _subset(path)) and options.size in (None, _size(path))
    ]
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        wanted = f"{options.subset or 'set'} at size {options.size or 'any'}"
        hint = nearest(f"{options.subset or ''}_{options.size or ''}", set(found))
        raise CollectionError(f"{root}: no .npz of {wanted}{hint}")
    raise CollectionError(
        f"{root}: holds {', '.join(path.name for path in chosen)}; name one, e.g. "
        f"options: {{subset: {_subset(chosen[0])}, size: {_size(chosen[0])}}}"
    )


def _subset(path: Path) -> str:
    found = _NAME.fullmatch(path.stem)
    return found["name"] if found else path.stem


def _size(path: Path) -> int:
    found = _NAME.fullmatch(path.stem)
    return int(found["size"] or 28) if found else 28


@lru_cache(maxsize=4)
def _known(subset: str) -> MedMnistSet | None:
    from ..catalog import load

    return load().medmnist.get(subset)


def _split(path: Path, split: str) -> tuple[str, list[list[int]]]:
    """Axes of one image, and a row of labels for each image of the split. Raises CollectionError."""
    from ..readers import array

    try:
        found = archive.opened(path)
        assert isinstance(found, archive.Zip)
        stack = found.stack(f"{split}_images.npy")
        labels = array.decode(archive.join(path, f"{split}_labels.npy"))
    except AssertionError:
        raise CollectionError(
            f"{path}: not an .npz but a bare array; layout medmnist cannot read it"
        ) from None
    except FileNotFoundError as error:
        raise CollectionError(
            f"{path}: {error.strerror}; MedMNIST has images and labels of train, val and test"
        ) from error
    except (OSError, ReadError) as error:
        raise CollectionError(f"{path}: {error}") from error
    shape = stack.shape[1:]
    axes = "HWC" if len(shape) == 3 and shape[-1] == 3 else _AXES.get(len(shape))
    if axes is None:
        raise CollectionError(
            f"{path}: {split}_images of shape {stack.shape}, expected [N, H, W], [N, H, W, 3] or [N, D, H, W]"
        )
    if labels.dtype.kind not in "biu" or labels.ndim > 2 or len(labels) != stack.shape[0]:
        raise CollectionError(
            f"{path}: {split}_labels of shape {labels.shape} and type {labels.dtype}, expected a row of "
            f"integers for each of {stack.shape[0]} images; download it again"
        )
    return axes, np.asarray(labels, np.int64).reshape(len(labels), -1).tolist()
