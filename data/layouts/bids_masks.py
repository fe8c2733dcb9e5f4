"""Which label map of a derivative belongs to which image.

A mask carries its image's entities and adds some of its own (desc, label, space ...); the image's suffix is
lost (`sub-01_T1w` becomes `sub-01_desc-lesion_mask`), or kept in front (`sub-01_T1w_seg`). So a mask belongs

1. to the image whose whole name begins its own; else
2. to the image with the same entities, when `space-` names its suffix, when there is only one such image, or
   when `mask_of` says which. Masks in any other space lie on another grid and are left out.

Where several masks are left, or several images, nothing is guessed: the image is refused with both names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CollectionError
from .base import has_suffix, readable, walk
from .bids_names import Name, parse_name

if TYPE_CHECKING:
    from .bids import Options

_KINDS = (".nii", ".nii.gz", ".ome.tif", ".ome.tiff", ".tif", ".tiff", ".png")
# Entities that derivatives add; they say nothing of which image a mask is of.
_ADDED = {"atlas", "den", "desc", "from", "hemi", "label", "mode", "res", "seg", "space", "to"}

_Key = tuple[tuple[str, str], ...]


class Masks:
    """The label maps of one derivative, by what they say of their image.

    Args:
        images: names of all images, among which a mask must find its own.

    Raises:
        CollectionError: the folder is missing.
    """

    def __init__(self, root: Path, options: Options, images: Sequence[Name]) -> None:
        self._options = options
        self._masks: dict[str, list[tuple[Name, Path]]] = defaultdict(list)  # by subject
        self._alike: dict[_Key, set[str]] = defaultdict(set)  # suffixes of images by entities
        if options.masks is None:
            return
        folder = root / options.masks
        if not folder.is_dir():
            raise CollectionError(f"{folder}: no such folder (options.masks)")
        for image in images:
            self._alike[_key(image)].add(image.suffix)
        for name, path in walk(folder):
            if not name.startswith("sub-") or not has_suffix(name, _KINDS):
                continue
            try:
                parsed = parse_name(name, strict=False)
            except CollectionError:  # other things that pipelines write
                continue
            if parsed.suffix.partition("-")[0] in options.mask_suffixes and self._wanted(parsed):
                self._masks[parsed.entities["sub"]].append((parsed, path))

    def of(self, image: Name) -> Path | None:
        """The label map of an image. Raises CollectionError when it cannot be told, or is empty."""
        mine = self._masks.get(image.entities["sub"], ())
        begun = [mask for mask in mine if mask[0].stem.startswith(f"{image.stem}_")]
        found = begun or [mask for mask in mine if self._same_entities(mask[0], image)]
        if len(found) > 1:
            both = " or ".join(mask.stem for mask, _ in found[:3])
            raise CollectionError(f"its mask could be {both}; choose with options.mask_entities")
        if found and (why := readable(found[0][1])):
            raise CollectionError(f"mask {found[0][0].stem}: {why}")
        return found[0][1] if found else None

    def _wanted(self, mask: Name) -> bool:
        return all(mask.entities.get(key) == value for key, value in self._options.mask_entities.items())

    def _same_entities(self, mask: Name, image: Name) -> bool:
        key = _key(image)
        if _key(mask) != key or any(mask.stem.startswith(f"{_front(mask)}{s}_") for s in self._alike[key]):
            return False  # of another image, which rule 1 finds
        space = mask.entities.get("space")
        if space not in (None, "orig"):
            return space == image.suffix
        alike = self._alike[key]
        if len(alike) == 1:
            return True
        if self._options.mask_of is None:
            raise CollectionError(
                f"mask {mask.stem} could be of {' or '.join(sorted(alike))}; say of which: options.mask_of"
            )
        return image.suffix == self._options.mask_of


def _key(name: Name) -> _Key:
    """What says of which image: all entities but those that derivatives add."""
    return tuple(sorted((key, value) for key, value in name.entities.items() if key not in _ADDED))


def _front(mask: Name) -> str:
    """The entities of a mask's image as they begin its name."""
    kept = [f"{key}-{value}" for key, value in mask.entities.items() if key not in _ADDED]
    return "_".join(kept) + "_"
