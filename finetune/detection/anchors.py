"""Anchors planned from the training boxes: which maps of a pyramid see them, and from which shapes.

RetinaNet's anchors (arXiv 1708.02002, section 4) suit photographs; nuclei of 12 pixels or nodules of 5 voxels
match none of them. Here the finest map is the coarsest on which a small box (tenth percentile of the class
with the smallest) is 2.5 cells wide, coarser ones follow until a large box (ninetieth of the largest) is four
cells wide, and the shapes are the centres of a k-means of the boxes' logarithmic sides, each box divided by
the scale of its map (YOLO9000, arXiv 1612.08242, section 2, in the logarithm instead of the IoU). Classes
weigh alike: of blood smears' boxes one in fourteen is a platelet, and by number alone none would fit them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_LEAST = 2.5  # cells that a small box is wide
_CELLS = 4  # cells that a large one is wide, as RetinaNet's anchors
_FINEST = 2  # pixels of the finest cell


class Anchors(NamedTuple):
    """Maps and shapes; plain lists, as plan.yaml holds them."""

    strides: list[list[int]]  # pixels of one cell of each map, fine to coarse
    shapes: list[list[float]]  # sides in pixels at the first map; the others multiply them by `scales`

    @property
    def scales(self) -> list[float]:
        """Factor of the shapes at each map, 1 at the first."""
        return [_mean(stride) / _mean(self.strides[0]) for stride in self.strides]


def plan_anchors(
    sides: np.ndarray,
    labels: np.ndarray,
    own: Sequence[Sequence[int]],
    patch: Sequence[int],
    *,
    levels: int,
    shapes: int,
) -> Anchors:
    """Choose maps and shapes.

    Args:
        sides: [N, axes] pixels of the training boxes, on the grid that the network sees.
        labels: [N], the class of each.
        own: strides of the encoder's pyramid; halved and doubled ones can be had too.
        patch: pixels that the network sees at once.
        levels: maps at most.
        shapes: anchors a cell at most.

    Raises:
        ValueError: no box.
    """
    if not len(sides):
        raise ValueError("no training box to plan anchors from")
    size = np.exp(np.log(np.maximum(sides, 1.0)).mean(axis=1))
    ends = [np.quantile(size[labels == label], [0.1, 0.9]) for label in np.unique(labels)]
    small, large = min(low for low, _ in ends), max(high for _, high in ends)
    chain = possible_strides(own, patch)
    fine = [place for place, stride in enumerate(chain) if _LEAST * _mean(stride) <= small]
    first = last = max(fine, default=0)
    while last + 1 < min(len(chain), first + levels) and _CELLS * _mean(chain[last]) < large:
        last += 1
    strides = [list(stride) for stride in chain[first : last + 1]]
    scales = np.array([_mean(stride) for stride in strides]) / _mean(strides[0])
    base = min(float(small), _CELLS * _mean(strides[0]))
    level = np.abs(np.log(size[:, None] / (base * scales[None, :]))).argmin(axis=1)
    weights = 1 / np.bincount(labels)[labels]
    return Anchors(strides, _centres(np.maximum(sides, 1.0) / scales[level, None], weights, shapes))


def possible_strides(own: Sequence[Sequence[int]], patch: Sequence[int]) -> list[tuple[int, ...]]:
    """The encoder's strides with halvings below and doublings above; all of them divide the patch."""
    chain = sorted({tuple(int(step) for step in stride) for stride in own})
    while max(chain[0]) > _FINEST and all(step % 2 == 0 or step == 1 for step in chain[0]):
        chain.insert(0, tuple(max(1, step // 2) for step in chain[0]))
    while all(
        side % (2 * step) == 0 and side > 2 * step for side, step in zip(patch, chain[-1], strict=True)
    ):
        chain.append(tuple(2 * step for step in chain[-1]))
    return chain


def _centres(shapes: np.ndarray, weights: np.ndarray, most: int) -> list[list[float]]:
    """Geometric centres of clusters of shapes [N, axes], small to large, to a tenth of a pixel."""
    from sklearn.cluster import KMeans

    logs = np.log(shapes)
    count = min(most, len(np.unique(np.round(logs, 3), axis=0)))
    found = KMeans(count, n_init="auto", random_state=0).fit(logs, sample_weight=weights).cluster_centers_
    order = np.argsort(found.sum(axis=1), kind="stable")
    return [[round(float(value), 1) for value in np.exp(found[index])] for index in order]


def _mean(stride: Sequence[float]) -> float:
    return math.prod(stride) ** (1 / len(stride))
