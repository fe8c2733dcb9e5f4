"""Do two thumbnails show the same picture? Registered, then compared in their local structure.

Hashes only propose pairs. Here one thumbnail is laid over the other, scale and shift an axis (Gauss-Newton
on the squared difference, Baker and Matthews 2004, Lucas-Kanade 20 Years On, section 2, with the four
parameters of a crop), and both are normalised in their surroundings, so that the outline which all
pictures of a kind share (the disc of a fundus, the skull) counts no more than the texture inside it. The
score is their correlation. A pair of pictures costs 0.5 ms, of volumes 5 ms.
"""

from __future__ import annotations

import numpy as np

VERSION = 1

_FAR = 0.03  # most that one step moves an edge, as a share of the axis
_REACH = 0.08  # most that an edge moves in all
_STEPS = 5
_ALIKE = 0.9  # correlation below which registered pictures are strangers; copies have 0.95 and more
_FINE, _COARSE = 1.5, 4.0  # cells: the band of structure that is compared
_FLAT = (0.1, 0.01)  # of the picture's own structure, and of its contrast: what counts as flat
_MARGIN = 16  # an edge of 1/16 is not compared: filters and crops disturb it
_BLOCK = 64 * 64 * 512  # values at once


def scores(one: np.ndarray, other: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """How alike two thumbnails are, pair by pair: float32 [P], 1 for the same picture.

    Args:
        one, other: uint8 [P, H, W] or [P, D, H, W]. windows: float [P, axes, 2], where in `other` `one`
        lies, as shares of each axis: the start of the search.

    Returns:
        Scores; 0 where the registered pictures are so unlike that their structure need not be compared.
    """
    found = np.zeros(len(one), np.float32)
    size = max(1, _BLOCK // max(1, int(np.prod(one.shape[1:]))))
    for start in range(0, len(one), size):
        part = slice(start, start + size)
        left, right = one[part].astype(np.float32), other[part].astype(np.float32)
        placed, alike = align(_halved(left), _halved(right), np.asarray(windows[part], np.float32))
        some = np.flatnonzero(alike >= _ALIKE)
        if len(some):
            seen = _sampled(right[some], placed[some])
            found[start + some] = _agreement(_local(left[some]), _local(seen))
    return found


def align(one: np.ndarray, other: np.ndarray, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Register thumbnails: the windows [P, axes, 2] of `other` that look most like `one`, and how much [P].

    Args:
        one, other: float32 [P, H, W] or [P, D, H, W].
        windows: where the search starts; no edge moves further than 8 % of its axis.
    """
    target, source = _standard(_blurred(one, 0.5)), _blurred(other, 0.5)
    now, best, most = windows.copy(), windows.copy(), np.full(len(one), -2.0, np.float32)
    for step in range(_STEPS + 1):
        seen = _standard(_sampled(source, now))
        alike = (target * seen).reshape(len(one), -1).mean(axis=1)
        better = alike > most
        most[better], best[better] = alike[better], now[better]
        if step < _STEPS:
            now = np.clip(now + _step(target, seen), windows - _REACH, windows + _REACH)
    return best, most


def _step(target: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """One Gauss-Newton step of the windows' edges [P, axes, 2]."""
    count, axes, side = len(seen), seen.ndim - 1, seen.shape[1]
    inside = (np.arange(side, dtype=np.float32) + 0.5) / side
    columns = []
    for axis in range(axes):
        slope = np.gradient(seen, axis=axis + 1) * side
        along = inside.reshape([-1 if n == axis else 1 for n in range(axes)])
        columns += [slope * (1 - along), slope * along]
    jacobian = np.stack([column.reshape(count, -1) for column in columns], axis=1)
    jacobian -= jacobian.mean(axis=2, keepdims=True)
    normal = jacobian @ jacobian.transpose(0, 2, 1)
    normal += (np.trace(normal, axis1=1, axis2=2)[:, None, None] * 1e-3 + 1e-6) * np.eye(
        2 * axes, dtype=np.float32
    )
    change = np.linalg.solve(normal, jacobian @ (target - seen).reshape(count, -1, 1))
    return np.clip(change, -_FAR, _FAR).reshape(count, axes, 2)


def _halved(thumbs: np.ndarray) -> np.ndarray:
    for axis in range(1, thumbs.ndim):
        even = (slice(None),) * axis
        thumbs = (thumbs[(*even, slice(0, None, 2))] + thumbs[(*even, slice(1, None, 2))]) / 2
    return thumbs


def _sampled(thumbs: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """`thumbs` [P, ...] inside their windows, on a grid of the same size, by linear interpolation."""
    side = thumbs.shape[1]
    inside = (np.arange(side, dtype=np.float32) + 0.5) / side
    rows = np.arange(side)
    for axis in range(thumbs.ndim - 1):
        low, high = windows[:, axis, :1], windows[:, axis, 1:]
        places = (low + (high - low) * inside) * side - 0.5
        left = np.clip(np.floor(places), 0, side - 2).astype(np.int64)
        share = np.clip(places - left, 0, 1)
        matrix = np.zeros((len(thumbs), side, side), np.float32)
        pair = np.arange(len(thumbs))[:, None]
        matrix[pair, rows, left] = 1 - share
        matrix[pair, rows, left + 1] = share
        moved = np.moveaxis(thumbs, axis + 1, 1)
        flat = matrix @ moved.reshape(len(thumbs), side, -1)
        thumbs = np.moveaxis(flat.reshape(moved.shape), 1, axis + 1)
    return thumbs


def _local(thumbs: np.ndarray) -> np.ndarray:
    """Structure of a band of sizes, divided by its strength around each cell; flat places stay near 0."""
    values = _standard(thumbs)
    band = _blurred(values, _FINE) - _blurred(values, _COARSE)
    around = np.sqrt(_blurred(band * band, _COARSE))
    overall = np.sqrt((band * band).mean(axis=tuple(range(1, band.ndim)), keepdims=True))
    return band / (around + _FLAT[0] * overall + _FLAT[1])


def _agreement(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    margin = one.shape[1] // _MARGIN
    inner = (slice(None), *(slice(margin, -margin),) * (one.ndim - 1))
    left, right = _standard(one[inner]), _standard(other[inner])
    return (left * right).reshape(len(one), -1).mean(axis=1)


def _blurred(values: np.ndarray, sigma: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(values, (0.0, *(sigma,) * (values.ndim - 1)), truncate=3.0)


def _standard(values: np.ndarray) -> np.ndarray:
    axes = tuple(range(1, values.ndim))
    values = values - values.mean(axis=axes, keepdims=True)
    return values / (np.sqrt((values * values).mean(axis=axes, keepdims=True)) + 1e-6)
