"""A small grey picture of an image, the same for all its copies: what hashes and comparisons are made of.

Pictures become 64 x 64, volumes 32 x 32 x 32 with their three central planes as pictures, whatever their
proportions: a copy that was resized, sharpened in its header or stored with other slices has the same
grid. Grey levels are the picture's own, between its 1st and 99th percentile, so that shifts and scalings
of intensity go. A picture costs 4 kB, a volume 45 kB on disk; a 512 x 512 x 200 CT takes 0.4 s, slice by
slice.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

SIDE_2D, SIDE_3D = 64, 32
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def thumb_of(array: np.ndarray) -> np.ndarray:
    """Thumbnail of [C, H, W] as uint8 [64, 64], of [C, D, H, W] as uint8 [32, 32, 32]."""
    return levels(means_of(array))


def means_of(array: np.ndarray) -> np.ndarray:
    """The thumbnail in the image's own units, float32."""
    if array.ndim == 3:
        return _shrunk(grey(array), SIDE_2D, SIDE_2D)
    slices = np.stack([_shrunk(grey(array[:, d]), SIDE_3D, SIDE_3D) for d in range(array.shape[1])])
    return np.tensordot(weights(len(slices), SIDE_3D), slices, axes=1)


def planes_of(array: np.ndarray) -> np.ndarray:
    """Thumbnails of the central axial, coronal and sagittal plane of [C, D, H, W]: uint8 [3, 64, 64]."""
    middle = [n // 2 for n in array.shape[1:]]
    planes = (np.take(array, place, axis=axis + 1) for axis, place in enumerate(middle))
    return np.stack([thumb_of(plane) for plane in planes])


@lru_cache(maxsize=256)
def weights(length: int, side: int) -> np.ndarray:
    """[side, length] float32: means of equal parts of a line; linear interpolation where it is shorter."""
    if length >= side:
        edges = np.linspace(0, length, side + 1)
        cells = np.arange(length)
        inside = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
        found = np.clip(inside, 0, None)
        return (found / found.sum(1, keepdims=True)).astype(np.float32)
    places = np.clip((np.arange(side) + 0.5) * length / side - 0.5, 0, length - 1)
    low = np.minimum(places.astype(int), max(length - 2, 0))
    found = np.zeros((side, length), np.float32)
    found[np.arange(side), low] = 1 - (places - low)
    found[np.arange(side), np.minimum(low + 1, length - 1)] += places - low
    return found


def grey(array: np.ndarray) -> np.ndarray:
    """[C, ...] -> float32 [...]: luma of three channels, mean of any other number."""
    if array.shape[0] == 3:
        return np.tensordot(LUMA, array.astype(np.float32), axes=1)
    return array.astype(np.float32).mean(axis=0)


def _shrunk(grey: np.ndarray, height: int, width: int) -> np.ndarray:
    return weights(grey.shape[0], height) @ grey @ weights(grey.shape[1], width).T


def levels(values: np.ndarray) -> np.ndarray:
    """Grey levels 0 to 255 between the 1st and the 99th percentile; all 0 when there is one value only."""
    low, high = np.percentile(values, (1, 99))
    if high <= low:
        low, high = values.min(), values.max()
    scale = 255 / (high - low) if high > low else 0.0
    return np.rint(np.clip((values - low) * scale, 0, 255)).astype(np.uint8)
