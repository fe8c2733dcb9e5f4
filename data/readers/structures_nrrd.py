"""3D Slicer's segmentations (.seg.nrrd) -> structures on the image's grid.

A segment is a value in a layer; segments that overlap lie in several layers. The file may hold only the box
around its segments: it is put where its millimetres say, like frames of a DICOM SEG.

Source: 3D Slicer, vtkMRMLSegmentationStorageNode, segmentation file format.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import ReadError
from ..sample import Image
from . import geometry, itk
from .grids import Grid
from .stored import Stored
from .structures import Structure

_MOST = 10_000  # segments


def structures_of(path: Path, like: Image) -> list[Structure] | None:
    """The segments of a .seg.nrrd on the grid of `like`; None for any other file.

    Raises:
        ReadError: damaged, or its voxels do not lie on the image's grid.
    """
    words = itk.header(path).words
    if not any(key in words for key in ("Segment0_ID", "Segment0_Name")):
        return None
    stored, array = itk.stored_of(path)
    layers = itk.ordered(array, stored)
    layers = layers.reshape(-1, *layers.shape[2:])
    if layers.ndim != 4 or stored.affine is None or like.ndim != 3 or like.affine is None:
        raise ReadError(
            f"{path.name}: segments need a volume with a place in the patient, and so does the image"
        )
    geometry.check_affine(stored.affine, path.name)
    lps = geometry.LPS_TO_RAS @ geometry.reverse_axes(stored.affine)
    grid = Grid(tuple(map(int, like.array.shape[1:])), like.affine)  # type: ignore[arg-type]
    try:
        box = grid.box(lps[:3, 3], lps[:3, :3].T, layers.shape[1:])
    except ReadError as error:
        raise ReadError(f"{path.name}: not on the image's grid: {error}; resample it on the image") from error
    return [_structure(stored, number, layers, box, like) for number in range(_count(words))]


def _count(words: dict[str, str]) -> int:
    number = 0
    while number < _MOST and any(f"Segment{number}_{key}" in words for key in ("ID", "Name", "LabelValue")):
        number += 1
    return number


def _structure(stored: Stored, number: int, layers: np.ndarray, box, like: Image) -> Structure:
    words, name = stored.words, stored.name
    try:
        # Before Slicer 4.11 a segment was a layer of its own, with 1 for the segment.
        old = f"Segment{number}_LabelValue" not in words
        value = 1 if old else int(words[f"Segment{number}_LabelValue"])
        layer = number if old else int(words.get(f"Segment{number}_Layer", "0"))
        plane = layers[layer] == value
    except (ValueError, IndexError) as error:
        raise ReadError(
            f"{name}: segment {number} names no layer and value of the file; repair it"
        ) from error

    def draw() -> np.ndarray:
        target = np.zeros(like.array.shape[1:], bool)
        box.add(plane, target)
        return target

    own = value if not old and len(layers) == 1 else number + 1
    return Structure(own, tuple(filter(None, [words.get(f"Segment{number}_Name")])), draw)
