"""Distances between the surfaces of two masks, 2D and 3D: NSD, Hausdorff percentiles, ASSD, MASD.

Libraries disagree here because they mean different surfaces. Two are offered:

- "elements" (default): surface elements at pixel corners, weighted by their length or area (`elements.py`),
  identical to DeepMind's surface-distance. NSD and HD95 do not depend on how finely a flat side is sampled.
- "voxels": the mask's own outermost pixels, each counted once, identical to MONAI's defaults. On anisotropic
  grids it is biased: an HD95 of 5.0 mm becomes 6.4 mm on spheres with 3.0 x 1.0 x 0.7 mm voxels.

Masks are cropped to their common bounding box. Two surfaces lie close together as a rule, so each point looks
at the grid points around it, from the nearest outwards, for one of the other surface; what has found nothing
within some 250 of them asks a k-d tree. Eleven organs of 512 x 512 x 200 voxels take 0.3 s, with the tree
alone 1.2 s (benchmarks/metrics.py); memory follows the box. Distances come from integer offsets, so they
equal those of an exact distance transform.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from .elements import element_measures, neighbour_codes
from .overlap import check_masks

Surface = Literal["elements", "voxels"]
_LOOKED_AT = {2: 120, 3: 250}  # grid points around a point, before the k-d tree is asked
_FEW = 1500  # points for which the tree alone is faster


@dataclass(frozen=True, slots=True)
class SurfaceDistances:
    """Distance (mm) and weight of each piece of either surface, sorted by distance and then by weight.

    A side without a surface is empty; the distances of the other side are then infinite.
    """

    to_reference: np.ndarray  # [P] from each piece of the predicted surface to the reference surface
    to_prediction: np.ndarray  # [R] from each piece of the reference surface to the predicted surface
    weight_prediction: np.ndarray  # [P] mm or mm² for "elements", 1 for "voxels"
    weight_reference: np.ndarray  # [R]
    surface: Surface


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], *, surface: Surface = "elements"
) -> SurfaceDistances:
    """Measure both surfaces of two boolean masks [H, W] or [D, H, W] against each other.

    Args:
        spacing: millimetres in array order, as many as the masks have axes.

    Raises:
        ValueError: shapes differ, masks are not boolean, or the spacing does not fit.
    """
    check_masks(prediction, reference)
    measures = element_measures(spacing)
    if prediction.ndim != len(spacing):
        raise ValueError(f"masks have {prediction.ndim} axes but the spacing has {len(spacing)} entries")
    steps = tuple(float(step) for step in spacing)
    shells = _shells(steps)
    box = foreground_box(prediction | reference) or (slice(0, 0),) * prediction.ndim
    side_p = _side(prediction[box], measures, surface, shells.margin)
    side_r = _side(reference[box], measures, surface, shells.margin)
    weight_p, weight_r = side_p.weights, side_r.weights
    to_reference = _nearest(side_p, side_r, steps, shells)
    to_prediction = _nearest(side_r, side_p, steps, shells)
    order_p = np.lexsort((weight_p, to_reference))
    order_r = np.lexsort((weight_r, to_prediction))
    return SurfaceDistances(
        to_reference[order_p], to_prediction[order_r], weight_p[order_p], weight_r[order_r], surface
    )


def nsd(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Normalised surface Dice: share of both surfaces that lies within `tolerance_mm` of the other one.

    0 when one mask is empty, nan when both are. Nikolov et al. 2018, arXiv:1809.04430, section "Performance
    metric".
    """
    if not tolerance_mm >= 0:
        raise ValueError(f"tolerance_mm {tolerance_mm}: expected zero or more millimetres")
    total = distances.weight_prediction.sum() + distances.weight_reference.sum()
    if total == 0:
        return float("nan")
    near = distances.weight_prediction[distances.to_reference <= tolerance_mm].sum()
    near += distances.weight_reference[distances.to_prediction <= tolerance_mm].sum()
    return float(near / total)


def hausdorff(distances: SurfaceDistances, percentile: float = 100.0) -> float:
    """Hausdorff distance (mm): the larger of the two directed distances at `percentile` (100 = the maximum).

    On elements the percentile runs over surface area; on voxels it interpolates linearly between voxels.
    Infinite when one mask is empty, nan when both are.
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile {percentile}: expected more than 0 and at most 100")
    if _undefined(distances):
        return _undefined_distance(distances)
    sides = (
        (distances.to_reference, distances.weight_prediction),
        (distances.to_prediction, distances.weight_reference),
    )
    if distances.surface == "voxels":
        return max(float(np.percentile(side, percentile)) for side, _ in sides)
    return max(_weighted_percentile(side, weight, percentile) for side, weight in sides)


def assd(distances: SurfaceDistances) -> float:
    """Average symmetric surface distance (mm): mean over both surfaces together, weighted by area.

    Infinite when one mask is empty, nan when both are.
    """
    if _undefined(distances):
        return _undefined_distance(distances)
    both = distances.to_reference @ distances.weight_prediction
    both += distances.to_prediction @ distances.weight_reference
    return float(both / (distances.weight_prediction.sum() + distances.weight_reference.sum()))


def masd(distances: SurfaceDistances) -> float:
    """Mean average surface distance (mm): mean of the two directed averages, so a small surface counts as
    much.

    Infinite when one mask is empty, nan when both are.
    """
    if _undefined(distances):
        return _undefined_distance(distances)
    forward = distances.to_reference @ distances.weight_prediction / distances.weight_prediction.sum()
    backward = distances.to_prediction @ distances.weight_reference / distances.weight_reference.sum()
    return float((forward + backward) / 2)


def _undefined(distances: SurfaceDistances) -> bool:
    return not (len(distances.to_reference) and len(distances.to_prediction))


def _undefined_distance(distances: SurfaceDistances) -> float:
    neither = not len(distances.to_reference) and not len(distances.to_prediction)
    return float("nan") if neither else float("inf")


def foreground_box(labels: np.ndarray) -> tuple[slice, ...] | None:
    """Smallest box [ndim slices] around what is not zero; None when nothing is."""
    box = []
    for axis in range(labels.ndim):
        # Each axis looks only into what the axes before left.
        inner = labels[(*box, ...)]
        present = np.flatnonzero(
            inner.any(axis=tuple(other for other in range(labels.ndim) if other != axis))
        )
        if not len(present):
            return None
        box.append(slice(int(present[0]), int(present[-1]) + 1))
    return tuple(box)


@dataclass(frozen=True, slots=True)
class _Side:
    """One surface on a grid that is wider than the mask on all sides."""

    present: np.ndarray  # bool [*grid]
    places: np.ndarray  # [N] flat positions on the grid
    weights: np.ndarray  # [N]

    def points(self, chosen: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Integer positions [N, ndim]."""
        return np.stack(np.unravel_index(self.places[chosen], self.present.shape), axis=1)


def _side(mask: np.ndarray, measures: np.ndarray, surface: Surface, margin: tuple[int, ...]) -> _Side:
    wide = [(size, size) for size in margin]
    if surface == "voxels":
        present = np.pad(mask & np.logical_not(ndimage.binary_erosion(mask)), wide)
        places = np.flatnonzero(present)
        return _Side(present, places, np.ones(len(places)))
    codes = np.pad(neighbour_codes(mask), wide)
    # Neither empty nor full: in uint8 the empty code 0 wraps to 255.
    present = codes - np.uint8(1) < np.uint8(len(measures) - 2)
    places = np.flatnonzero(present)
    return _Side(present, places, measures[codes.ravel()[places]])


@dataclass(frozen=True, slots=True)
class _Shells:
    """Grid offsets around a point, grouped by distance in ascending order; no nearer one is missing."""

    margin: tuple[int, ...]  # largest offset along each axis
    distances: tuple[float, ...]  # mm, one a shell
    offsets: tuple[np.ndarray, ...]  # int [K, ndim], one a shell


@lru_cache(maxsize=16)
def _shells(spacing: tuple[float, ...]) -> _Shells:
    scale, ndim = np.asarray(spacing), len(spacing)
    volume = _LOOKED_AT[ndim] * float(np.prod(scale))
    radius = (volume / np.pi) ** 0.5 if ndim == 2 else (volume * 3 / (4 * np.pi)) ** (1 / 3)
    reach = [int(radius / step) for step in spacing]
    offsets = np.indices([2 * n + 1 for n in reach]).reshape(ndim, -1).T - reach
    distances = _lengths(offsets, scale)
    offsets, distances = offsets[distances <= radius], distances[distances <= radius]
    each, shell = np.unique(distances, return_inverse=True)
    groups = tuple(offsets[shell == number] for number in range(len(each)))
    margin = tuple(int(side) for side in np.abs(offsets).max(axis=0))
    return _Shells(margin, tuple(each.tolist()), groups)


def _nearest(side: _Side, other: _Side, spacing: tuple[float, ...], shells: _Shells) -> np.ndarray:
    """Distance (mm) from each point of one surface to the other surface; infinite when that is empty."""
    result = np.full(len(side.places), np.inf)
    if not len(side.places) or not len(other.places):
        return result
    rest, places = np.arange(len(side.places)), side.places
    if len(places) > _FEW:
        strides = np.array(
            [np.prod(side.present.shape[axis + 1 :], dtype=int) for axis in range(len(spacing))]
        )
        flat = other.present.ravel()
        for distance, offsets in zip(shells.distances, shells.offsets, strict=True):
            found = np.zeros(len(rest), bool)
            for step in offsets @ strides:
                found |= flat[places + step]
            result[rest[found]] = distance
            rest, places = rest[~found], places[~found]
            if not len(rest):
                return result
    scale = np.asarray(spacing)
    points, targets = side.points(rest), other.points()
    # On points of a grid such a tree is built and asked four times as fast as scipy's default.
    tree = KDTree(targets * scale, leafsize=48, compact_nodes=False, balanced_tree=False)
    _, nearest = tree.query(points * scale)
    # From the integer offset: 3 x 0.1 - 1 x 0.1 is not 2 x 0.1, and a tolerance of 0.2 would miss it.
    result[rest] = _lengths(points - targets[nearest], scale)
    return result


def _lengths(offsets: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Length (mm) of integer offsets [N, ndim]."""
    return np.sqrt(np.square(offsets * scale).sum(axis=1))


def _weighted_percentile(values: np.ndarray, weights: np.ndarray, percentile: float) -> float:
    share = np.cumsum(weights) / weights.sum()
    return float(values[min(int(np.searchsorted(share, percentile / 100.0)), len(values) - 1)])
