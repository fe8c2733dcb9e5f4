"""Label maps: unsigned integers on exactly the image's grid, or a refusal.

Nothing is resampled, rounded or guessed: a mask on another grid is a fault of the data that a silent repair
would carry into every Dice value.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from ..annotations.mismatch import explain
from ..errors import ReadError
from ..sample import Given, Image
from . import array as arrays
from . import geometry, npz, raster, structures_dicom, structures_nrrd
from .structures import Structure, label_map

# Farthest that a corner of the mask's grid may lie from the image's, as a share of the smallest voxel edge.
AFFINE_TOLERANCE = 0.1
# Scaled or floating labels may be this far from an integer.
INTEGER_TOLERANCE = 1e-3


def read_label_map(
    path: Path,
    like: Image,
    values: Mapping[int, int] | Literal["nonzero"] | None = None,
    given: Given | None = None,
    classes: Mapping[int, str] | None = None,
) -> np.ndarray:
    """The map alone of `read_named_label_map`. Raises as that."""
    return read_named_label_map(path, like, values, given, classes)[0]


def read_named_label_map(
    path: Path,
    like: Image,
    values: Mapping[int, int] | Literal["nonzero"] | None = None,
    given: Given | None = None,
    classes: Mapping[int, str] | None = None,
) -> tuple[np.ndarray, dict[int, str]]:
    """Read the label map of an image, and the names of its labels.

    Args:
        path: NIfTI, MetaImage, NRRD, DICOM, array or raster; of a palette picture the indices count, not the
            colours. Of named structures (DICOM SEG, RTSTRUCT, .seg.nrrd): see structures.py.
        like: the image; the map must have its spatial shape and, where both files state one, its affine.
        values: None keeps labels, "nonzero" makes 0/1, a mapping {file value: label} renames (0 stays 0
            unless the mapping says otherwise).
        given: what the source says of array files.
        classes: the source's names of the labels, by which named structures are found.

    Returns:
        uint8, uint16 or uint32, [D, H, W] or [H, W]; and `classes`, or else what a file of named structures
        says of its labels, as far as that may leave it (anatomy.py).

    Raises:
        ReadError: unreadable; several channels or frames; another shape; a grid corner farther off than 10 %
            of a voxel edge; negative or fractional labels; a value that the mapping does not name; structures
            that are not on the image, overlap without a decision, or have none of the declared names.
    """
    path, classes = Path(path), classes or {}
    found = _structures(path, like)
    if found is not None:
        return label_map(found, like.array.shape[1:], values, classes, path.name)
    return _plain(path, like, values, given), dict(classes)


def _structures(path: Path, like: Image) -> list[Structure] | None:
    """The structures of a file of named ones; None for a map of labels."""
    from . import dicom, itk, reader_of

    reader = reader_of(path)
    if reader is itk:
        return structures_nrrd.structures_of(path, like)
    if reader is dicom:
        return structures_dicom.structures_of(path, like)
    return None


def _plain(
    path: Path,
    like: Image,
    values: Mapping[int, int] | Literal["nonzero"] | None,
    given: Given | None,
) -> np.ndarray:
    array, affine = _stored(path, like, given)
    expected = like.array.shape[1:]
    if array.ndim - 1 != len(expected) and 1 in array.shape[1:]:
        # A one-slice volume for a picture, or the other way round.
        array = array.reshape(array.shape[0], *[size for size in array.shape[1:] if size > 1])
    if array.shape[0] != 1:
        raise ReadError(f"{path.name}: {array.shape[0]} channels, expected one of labels; merge them first")
    if array.shape[1:] != expected:
        raise ReadError(
            f"{path.name}: mask shape {array.shape[1:]}, image shape {expected}; "
            f"{explain(array.shape[1:], affine, expected, like.affine)}"
        )
    if affine is not None and like.affine is not None and len(expected) == 3:
        _check_grid(path.name, affine, like, expected)
    return _mapped(_integers(array[0], path.name), values, path.name)


def _stored(path: Path, like: Image, given: Given | None) -> tuple[np.ndarray, np.ndarray | None]:
    from . import reader_of

    reader = reader_of(path)
    if reader is raster:
        return raster.read_labels(path), None
    if reader is npz:
        reader, path = arrays, npz.address_of(path, mask=True)
    if reader is arrays:
        return arrays.read_labels(path, like.ndim, given)
    images = list(reader.read([path]))
    if len(images) != 1:
        raise ReadError(f"{path.name}: {len(images)} frames, expected one label map")
    if images[0].facts.get("nonfinite"):
        raise ReadError(f"{path.name}: NaN or infinite labels, expected integers; repair the mask")
    return images[0].array, images[0].affine


def _check_grid(name: str, affine: np.ndarray, like: Image, shape: tuple[int, ...]) -> None:
    assert like.affine is not None
    away = geometry.corner_distance(affine, like.affine, shape)
    bound = AFFINE_TOLERANCE * min(geometry.spacing_of(like.affine))
    if away > bound:
        raise ReadError(
            f"{name}: the mask's affine puts a corner {away:.3g} mm from the image's, expected at most "
            f"{bound:.3g} mm: {explain(shape, affine, shape, like.affine)}"
        )


def _integers(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind == "f":
        rounded = np.rint(array)
        away = float(np.abs(array - rounded).max())
        if away > INTEGER_TOLERANCE:
            raise ReadError(f"{name}: labels are {away:.3g} off integers; is it a probability map?")
        array = rounded.astype(np.int64)
    low, high = int(array.min()), int(array.max())
    if low < 0:
        raise ReadError(f"{name}: negative label {low}, expected 0 (background) or above; map or repair it")
    return array.astype(_unsigned(high), copy=False)


def _unsigned(high: int) -> type[np.unsignedinteger]:
    return np.uint8 if high < 1 << 8 else np.uint16 if high < 1 << 16 else np.uint32


def _mapped(
    array: np.ndarray, values: Mapping[int, int] | Literal["nonzero"] | None, name: str
) -> np.ndarray:
    if values is None:
        return array
    if values == "nonzero":
        return (array > 0).astype(np.uint8)
    assert not isinstance(values, str)
    table = {0: 0, **{int(source): int(label) for source, label in values.items()}}
    present = np.unique(array).tolist()
    unknown = [value for value in present if value not in table]
    if unknown:
        raise ReadError(
            f"{name}: label values {unknown[:8]} are not in mask_values {sorted(table)}; "
            "add them to the mapping"
        )
    result = np.zeros(array.shape, _unsigned(max(table.values())))
    for source in present:
        result[array == source] = table[source]
    return result
