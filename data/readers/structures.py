"""Named structures (DICOM SEG, RTSTRUCT, 3D Slicer's .seg.nrrd) -> one label map on the image's grid.

The numbers of such files mean nothing beyond the file: region 3 is the liver of one patient and the spleen of
the next. So where the collection declares `mask_classes`, structures are matched by name and get the declared
value; others are left out. `mask_values` goes by number instead. With neither, the file's own numbers stand.

Structures overlap (a tumour in its organ, a target in its margin), and a label map holds one label a voxel:
with `mask_classes` the higher value is drawn over the lower; without, an overlap is refused and explained.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import ReadError
from .anatomy import allowed, normal

logger = logging.getLogger(__name__)

Values = Mapping[int, int] | Literal["nonzero"] | None
_LISTED = 8


@dataclass(frozen=True, slots=True)
class Structure:
    """One structure of a file."""

    number: int  # the file's own
    names: tuple[str, ...]  # the file's own words: see anatomy.py for what of them may leave
    draw: Callable[[], np.ndarray]  # bool [D, H, W] or [H, W], on the image's grid

    @property
    def title(self) -> str:
        """What a message may call it."""
        return next((f"{name!r}" for own in self.names if (name := allowed(own))), f"number {self.number}")


def label_map(
    structures: Sequence[Structure],
    shape: Sequence[int],
    values: Values,
    classes: Mapping[int, str],
    name: str,
) -> tuple[np.ndarray, dict[int, str]]:
    """Draw structures into one map.

    Args:
        shape: of the image, (D, H, W) or (H, W).
        values, classes: the source's `mask_values` and `mask_classes`; see above.
        name: of the file, for messages.

    Returns:
        uint8, uint16 or uint32 of `shape`, and the names of its labels as far as they may leave.

    Raises:
        ReadError: none of the declared classes is there, a number that `mask_values` does not map, or an
            overlap that nothing decides.
    """
    chosen, names, decided = _chosen(structures, values, classes, name)
    high = max((label for label, _ in chosen), default=0)
    if high >= 1 << 32:
        raise ReadError(f"{name}: structure number {high}, expected less than 2**32; map it in mask_values")
    result = np.zeros(tuple(shape), np.uint8 if high < 1 << 8 else np.uint16 if high < 1 << 16 else np.uint32)
    drawn_before: list[Structure] = []
    covered = 0
    for label, structure in sorted(chosen, key=lambda pair: pair[0]):
        mask = structure.draw()
        over = int(np.count_nonzero(result[mask] * (result[mask] != label)))
        if over and not decided:
            other = next((s for s in drawn_before if (s.draw() & mask).any()), structure)
            raise ReadError(
                f"{name}: {other.title} and {structure.title} overlap in {over} voxels, and a label map has "
                "one label a voxel; declare the wanted ones in mask_classes, the upper with the higher value"
            )
        covered += over
        result[mask] = label
        drawn_before.append(structure)
    if covered:
        logger.info("%d voxels of structures lie under others with a higher value", covered)
    return result, names


def _chosen(
    structures: Sequence[Structure], values: Values, classes: Mapping[int, str], name: str
) -> tuple[list[tuple[int, Structure]], dict[int, str], bool]:
    """(label, structure) pairs, names of the labels, and whether it is settled who covers whom."""
    if values == "nonzero":
        return [(1, structure) for structure in structures], dict(classes), True
    if values is not None:
        assert not isinstance(values, str)
        unknown = [s.number for s in structures if s.number not in values]
        if unknown:
            raise ReadError(
                f"{name}: structures {unknown[:_LISTED]} are not in mask_values {sorted(values)}; "
                "add them to the mapping"
            )
        pairs = [(int(values[s.number]), s) for s in structures]
        return [(label, s) for label, s in pairs if label], dict(classes), True
    if classes:
        return _by_name(structures, classes, name), dict(classes), True
    names = {s.number: found for s in structures for own in reversed(s.names) if (found := allowed(own))}
    if min((s.number for s in structures), default=1) < 1:
        raise ReadError(f"{name}: a structure with number 0 or below; declare mask_classes to go by name")
    return [(s.number, s) for s in structures], names, False


def _by_name(
    structures: Sequence[Structure], classes: Mapping[int, str], name: str
) -> list[tuple[int, Structure]]:
    wanted = {normal(word): value for value, word in classes.items()}
    found = []
    for structure in structures:
        value = next((wanted[normal(own)] for own in structure.names if normal(own) in wanted), None)
        if value is not None:
            found.append((value, structure))
    if structures and not found:
        there = ", ".join(structure.title for structure in structures[:_LISTED])
        raise ReadError(
            f"{name}: none of its {len(structures)} structures ({there}) is in mask_classes "
            f"({', '.join(list(classes.values())[:_LISTED])}); add its names, or use mask_values (by number)"
        )
    return found
