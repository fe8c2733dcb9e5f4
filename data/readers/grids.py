"""Where a plane or a box of voxels lies on an image's grid: by millimetres, never by the order of files.

Both sides state their place in the patient; what fits to a tenth of a voxel is put there, with the axes and
directions of the image, and all else is refused. Nothing is resampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ReadError
from .geometry import LPS_TO_RAS

TOLERANCE = 0.1  # voxels


@dataclass(frozen=True, slots=True)
class Grid:
    """An image's grid."""

    shape: tuple[int, int, int]  # (D, H, W)
    affine: np.ndarray  # index (d, h, w, 1) -> RAS+ mm

    def index_of(self, lps: np.ndarray) -> np.ndarray:
        """Indices (d, h, w) [N, 3], fractional, of places [N, 3] in LPS mm."""
        homogeneous = np.column_stack([lps, np.ones(len(lps))])
        return (np.linalg.inv(self.affine) @ LPS_TO_RAS @ homogeneous.T).T[:, :3]

    def box(self, corner: np.ndarray, steps: np.ndarray, size: tuple[int, ...]) -> Box:
        """Where an array lies.

        Args:
            corner: [3], place of its first element in LPS mm.
            steps: [axes, 3], from one element to the next along each of its axes, in LPS mm.
            size: of the array, (axes).

        Raises:
            ReadError: half a sentence: what does not fit.
        """
        places = np.vstack([corner, corner + steps])
        index = self.index_of(places)
        start, moves = index[0], index[1:] - index[0]
        axes = [int(np.argmax(np.abs(move))) for move in moves]
        signs = [int(np.sign(move[axis])) for move, axis in zip(moves, axes, strict=True)]
        straight = np.zeros_like(moves)
        for number, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
            straight[number, axis] = sign
        away = np.abs(moves - straight).max(axis=1) * np.maximum(np.array(size) - 1, 1)
        if len(set(axes)) < len(axes) or away.max() > TOLERANCE:
            raise ReadError("its voxels have another size or direction than the image's")
        if np.abs(start - np.rint(start)).max() > TOLERANCE:
            off = ", ".join(f"{part:.2f}" for part in start - np.rint(start))
            raise ReadError(f"it lies ({off}) voxels (d, h, w) off the image's grid")
        first = np.rint(start).astype(int)
        last = first.copy()
        for axis, sign, length in zip(axes, signs, size, strict=True):
            last[axis] += sign * (length - 1)
        low, high = np.minimum(first, last), np.maximum(first, last)
        if (low < 0).any() or (high >= self.shape).any():
            raise ReadError("it reaches beyond the image")
        return Box(tuple(axes), tuple(signs), tuple(map(int, low)), tuple(map(int, high)))


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a grid."""

    axes: tuple[int, ...]  # the grid's axis of each axis of the array
    signs: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]  # inclusive

    def add(self, array: np.ndarray, target: np.ndarray) -> None:
        """target |= array, at this place; bool [axes] into bool [D, H, W]."""
        turned = array[tuple(slice(None, None, sign) for sign in self.signs)]
        order = np.argsort(self.axes)
        turned = turned.transpose(order)
        for axis in range(3):
            if axis not in self.axes:
                turned = np.expand_dims(turned, axis)
        place = tuple(slice(a, b + 1) for a, b in zip(self.low, self.high, strict=True))
        target[place] |= turned
