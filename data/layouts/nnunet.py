"""Cases that nnU-Net v2 or nnssl preprocessed: .npz or .b2nd with a .pkl of properties beside it.

`root` is the folder of one configuration (nnUNetPlans_3d_fullres) or the dataset's folder above, where
`configuration` chooses when there are several. Intensities are z-scores already: they stay float32, and the
stream leaves them as they are. The plans give the order of axes, dataset.json the names of the labels. Opens
the table of contents of every .npz, about 0.1 ms each.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import CollectionError, ReadError
from ..interop import archive
from ..sample import Given, Record
from .base import Progress, Refusal, Source, counted, readable, subject_in, subject_pattern, walk
from .msd import mask_classes_of

logger = logging.getLogger(__name__)

_NOT_IMAGES = ("_seg", "__anon", "__anat")


@dataclass
class Options:
    """Keys of `options` in a source of layout nnunet."""

    configuration: str | None = (
        None  # end of the folder's name, e.g. 3d_fullres; needed when there are several
    )
    fold: int | None = None  # of splits_final.json: gives train and val
    masks: bool = True  # keep segmentations
    normalised: bool = True  # false where the plans say NoNormalization
    subject_pattern: str | None = None  # one group on the relative path; default: the case


def describe(source: Source) -> Source:
    """Fill the mask classes from dataset.json where the collection does not state them."""
    facts = _beside(source.root, "dataset.json")
    return replace(source, mask_classes=source.mask_classes or mask_classes_of(facts))


def scan(
    root: Path, source: Source, options: Options, progress: Progress | None = None
) -> Iterator[Record | Refusal]:
    """Yield a Record per case.

    Raises:
        CollectionError: no such configuration, or several and none is named; no such fold.
        ConfigError: `subject_pattern` is not a pattern with one group.
    """
    pattern = subject_pattern(options.subject_pattern)
    cases = _cases(root, options)
    transposes: dict[Path, tuple[int, ...]] = {}
    splits = _splits(root, options.fold)
    for name, path in counted(cases, source.dataset, progress):
        stem = name.rpartition(".")[0]
        folder = root / name.split("/")[0] if "/" in name else root
        if folder not in transposes:
            transposes[folder] = _transpose(root, folder)
        subject = subject_in(stem, pattern)
        try:
            image, mask = _image_and_mask(path, options)
        except (ReadError, CollectionError) as error:
            yield Refusal(name, path, str(error))
            continue
        if not subject:
            yield Refusal(name, path, f"options.subject_pattern {options.subject_pattern!r} does not match")
            continue
        yield Record(
            dataset=source.dataset,
            name=name,
            subject=subject,
            paths=(image,),
            modality=source.modality,
            organ=source.organ,
            licence=source.licence,
            split=splits.get(stem.rpartition("/")[2]),
            mask=mask,
            given=Given(
                axes="CDHW",
                normalised=options.normalised,
                properties=path.with_suffix(".pkl"),
                transpose=transposes[folder],
            ),
        )


def _cases(root: Path, options: Options) -> list[tuple[str, Path]]:
    """(relative name, path) of the cases of one configuration."""
    found = []
    for name, path in walk(root):
        if path.suffix.lower() in (".npz", ".b2nd") and not path.stem.endswith(_NOT_IMAGES):
            found.append((name, path))
    # nnU-Net names the folder of a configuration after its plans; nnssl's folders of datasets do not.
    folders = sorted(
        {name.split("/")[0] for name, _ in found if "/" in name and "Plans_" in name.split("/")[0]}
    )
    chosen = [f for f in folders if options.configuration is None or f.endswith(options.configuration)]
    if folders and len(chosen) != 1:
        raise CollectionError(
            f"{root}: holds the configurations {', '.join(folders)}; name one, e.g. configuration: 3d_fullres"
        )
    return [(name, path) for name, path in found if not chosen or name.startswith(f"{chosen[0]}/")]


def _image_and_mask(path: Path, options: Options) -> tuple[Path, Path | None]:
    """Addresses of a case's image and segmentation. Raises ReadError, CollectionError."""
    if reason := readable(path):
        raise CollectionError(reason)
    if path.suffix.lower() == ".b2nd":
        mask = path.with_name(f"{path.stem}_seg.b2nd")
        return path, mask if options.masks and mask.is_file() else None
    names = archive.opened(path).names()
    if "data.npy" not in names:
        raise CollectionError(f"holds no array `data`, only {', '.join(names[:5]) or 'nothing'}")
    mask = archive.join(path, "seg.npy") if options.masks and "seg.npy" in names else None
    return archive.join(path, "data.npy"), mask


def _transpose(root: Path, folder: Path) -> tuple[int, ...]:
    """`transpose_forward` of the plans that made `folder`."""
    for place in (folder, folder.parent, root, root.parent):
        for path in sorted(place.glob("*Plans*.json")):
            order = _json(path).get("transpose_forward")
            named = folder.name.startswith(path.stem) or root.name.startswith(path.stem)
            if named and isinstance(order, list) and sorted(order) == [0, 1, 2]:
                return tuple(order)
    logger.warning("no plans beside the arrays; their axes are taken as z, y, x")
    return (0, 1, 2)


def _splits(root: Path, fold: int | None) -> dict[str, str]:
    if fold is None:
        return {}
    folds: Any = _beside(root, "splits_final.json")
    if not isinstance(folds, list) or not 0 <= fold < len(folds):
        count = len(folds) if isinstance(folds, list) else 0
        raise CollectionError(f"{root}: no fold {fold} in splits_final.json, which has {count}")
    return {str(case): split for split in ("train", "val") for case in folds[fold].get(split, [])}


def _beside(root: Path, name: str) -> Any:
    """JSON beside or above the cases; empty when there is none."""
    for place in (root, root.parent):
        if (place / name).is_file():
            return _json(place / name)
    return {}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CollectionError(f"{path}: cannot be read as JSON: {error}") from error
