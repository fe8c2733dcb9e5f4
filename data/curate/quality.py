"""The numbers of one image that the rules of quality look at; measured once, judged later (rules.py).

A sample of at most a million values on a regular grid stands for a large image. 10 ms for a picture of 500 x
500, 0.3 s for a CT of 512 x 512 x 200.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..sample import Modality
from . import text
from .thumbs import grey, means_of

VERSION = 1  # raise it when a number changes: images are measured again

SAMPLED = 1 << 20
BODY_HU = -300.0  # skin and fat lie above, air below
_LEVELS = 64  # of the histogram whose entropy is taken
_EVEN = 0.01  # of the range: a line that varies less is empty
_COLOURED = 0.15  # of the range: difference of the channels of a pixel

Numbers = dict[str, float]


def measure(array: np.ndarray, modality: Modality | str, spacing: Sequence[float] | None) -> Numbers:
    """Numbers of an image [C, D, H, W] or [C, H, W]; those that do not apply to it are left out.

    Returns:
        "mode": share of the most frequent value; "entropy": bits of 64 grey levels; "structure": share of
        the variance that is left at thumbnail size, noise removed; "band": largest share of empty lines
        at one end of an axis, less that at the other; "edges": mean slope of the thumbnail; "low",
        "high": 0.5th and 99.5th percentile; "aspect": height to width. Of pictures "characters"; of
        colour pictures "colour": share of coloured pixels, "red" and "blue": how much brighter than
        green, as shares of the range. Of CT "body_edge": share of body on the fullest side of the field
        of view. With a spacing, in mm: "extent_low", "extent_high", "spacing_low", "spacing_high".
    """
    step = max(1, math.ceil((array[0].size / SAMPLED) ** (1 / (array.ndim - 1))))
    values = array[(slice(None), *(slice(None, None, step),) * (array.ndim - 1))].astype(np.float32)
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    span = float(values.max()) - float(values.min())
    means = means_of(array)
    found = {
        "mode": _mode(values),
        "entropy": _entropy(values),
        "structure": _structure(means, values, array.shape[1:]),
        "band": _band(array[0], high - low),
        "edges": _edges(means),
        "low": low,
        "high": high,
        "aspect": array.shape[-2] / array.shape[-1],
    }
    if array.shape[0] == 3 and array.ndim == 3:
        spread = values.max(axis=0) - values.min(axis=0)
        found["colour"] = float((spread > _COLOURED * span).mean()) if span > 0 else 0.0
        red, green, blue = (float(values[channel].mean()) / max(span, 1e-6) for channel in range(3))
        found |= {"red": red - green, "blue": blue - green}
    if array.ndim == 3:
        found["characters"] = text.characters(array)
    elif modality in (Modality.CT, Modality.CBCT) and array.min() < BODY_HU:
        found["body_edge"] = _body_edge(array[0])
    if spacing:
        extent = [mm * n for mm, n in zip(spacing, array.shape[1:], strict=True)]
        found |= {"extent_low": min(extent), "extent_high": max(extent)}
        found |= {"spacing_low": min(spacing), "spacing_high": max(spacing)}
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def _mode(values: np.ndarray) -> float:
    """Share of the most frequent value of the first channel."""
    _, counts = np.unique(values[0], return_counts=True)
    return float(counts.max() / values[0].size)


def _entropy(values: np.ndarray) -> float:
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return 0.0
    counts, _ = np.histogram(values, bins=_LEVELS, range=(low, high))
    shares = counts[counts > 0] / values.size
    return float(-(shares * np.log2(shares)).sum())


def _structure(means: np.ndarray, values: np.ndarray, shape: Sequence[int]) -> float:
    """0 for noise, whose means of blocks vary as 1 / block; near 1 for what has large shapes."""
    total = float(grey(values).var())
    if total <= 0:
        return 0.0
    block = math.prod(max(1.0, n / side) for n, side in zip(shape, means.shape, strict=True))
    if block < 2:  # hardly anything was averaged: noise cannot be told
        return 1.0
    return max(0.0, (float(means.var()) / total - 1 / block) / (1 - 1 / block))


def _band(plane: np.ndarray, span: float) -> float:
    """How much emptier one end of the axes is than the other, as a share of the axis."""
    worst = 0.0
    for axis in range(plane.ndim):
        others = tuple(a for a in range(plane.ndim) if a != axis)
        spread = plane.max(axis=others).astype(np.float32) - plane.min(axis=others).astype(np.float32)
        full = np.flatnonzero(spread > _EVEN * span)
        if len(full):
            before, after = full[0] / len(spread), 1 - (full[-1] + 1) / len(spread)
            worst = max(worst, abs(before - after))
    return float(worst)


def _edges(means: np.ndarray) -> float:
    spread = float(means.std())
    slopes = (np.gradient(means, axis=axis) for axis in range(means.ndim))
    return float(sum(np.abs(slope).mean() for slope in slopes) / spread) if spread > 0 else 0.0


def _body_edge(volume: np.ndarray) -> float:
    """Of a CT [D, H, W] in HU: share of body on the fullest of its four sides."""
    sides = (volume[:, 0], volume[:, -1], volume[:, :, 0], volume[:, :, -1])
    return float(max((side > BODY_HU).mean() for side in sides))
