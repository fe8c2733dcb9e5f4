"""Fewer samples: coarser pixels, thicker slices, a smaller field of view. The array keeps its shape.

Labels stay on the array, so what a smaller field of view cuts off counts as missed, as it does for the
reader who needed it.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy import sparse

from .scene import SIDE, Scene

THROUGH_PLANE = 1  # array axis [C, D, H, W] of a stack of slices


def resolution(x: np.ndarray, scene: Scene, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Pixels `factor` times as wide in every direction, shown on the old grid.

    Pictures are first taken to 256 pixels a side: a coarser file of 4000 pixels would be nothing that a
    network with a small input could see.
    """
    if scene.ndim == 2:
        factor *= max(1.0, max(scene.shape) / SIDE)
    for axis in range(1, x.ndim):
        x = coarser(x, axis, factor)
    return x


def anisotropy(x: np.ndarray, scene: Scene, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Pixels `factor` times as long along one drawn axis of the slice (partial phase encoding)."""
    axis = scene.plane[int(rng.integers(2))]
    if scene.ndim == 2:
        factor *= max(1.0, max(scene.shape) / SIDE)
    return coarser(x, axis, factor)


def slice_thickness(x: np.ndarray, scene: Scene, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Slices `factor` times as thick, each the mean of what it holds, interpolated to the old positions."""
    return coarser(x, THROUGH_PLANE, factor)


def cropping(x: np.ndarray, scene: Scene, side: float, rng: np.random.Generator) -> np.ndarray:
    """The field of view shrinks to the share `side` of both axes of the slice, each inside every larger one.

    Outside lies what the image holds where nothing is: its darkest value, black in a colour picture.
    """
    darkest = x.min(axis=tuple(range(1, x.ndim)), keepdims=True)
    out = np.broadcast_to(darkest if not scene.colour else np.zeros_like(darkest), x.shape).copy()
    box: list[slice] = [slice(None)] * x.ndim
    for axis in scene.plane:
        length = x.shape[axis]
        start = rng.uniform() * (1 - side) * length
        box[axis] = slice(round(start), max(round(start) + 1, round(start + side * length)))
    out[tuple(box)] = x[tuple(box)]
    return out


def coarser(x: np.ndarray, axis: int, factor: float) -> np.ndarray:
    """Average [C, *spatial] over cells of `factor` voxels along an axis, and interpolate back linearly."""
    length = x.shape[axis]
    cells = max(1, round(length / factor))
    if cells >= length:
        return x
    lines = np.moveaxis(x, axis, 0)
    found = _back(cells, length) @ (_means(length, cells) @ lines.reshape(length, -1))
    return np.moveaxis(found.reshape(lines.shape), 0, axis).astype(np.float32)


def _means(length: int, cells: int) -> sparse.csr_array:
    """[cells, length]: mean over the share of each voxel that lies in the cell."""
    edges = np.linspace(0, length, cells + 1)
    rows, columns, values = [], [], []
    for cell, (start, stop) in enumerate(pairwise(edges)):
        voxels = np.arange(int(start), min(int(np.ceil(stop)), length))
        shares = np.minimum(voxels + 1, stop) - np.maximum(voxels, start)
        rows += [cell] * len(voxels)
        columns += voxels.tolist()
        values += (shares / (stop - start)).tolist()
    return sparse.csr_array((np.asarray(values, np.float32), (rows, columns)), shape=(cells, length))


def _back(cells: int, length: int) -> sparse.csr_array:
    """[length, cells]: linear interpolation between the middles of the cells, constant beyond the last."""
    place = np.clip((np.arange(length) + 0.5) * cells / length - 0.5, 0, cells - 1)
    left = np.minimum(place.astype(int), max(cells - 2, 0))
    share = (place - left).astype(np.float32)
    right = np.minimum(left + 1, cells - 1)
    rows = np.concatenate([np.arange(length)] * 2)
    return sparse.csr_array(
        (np.concatenate([1 - share, share]), (rows, np.concatenate([left, right]))), shape=(length, cells)
    )
