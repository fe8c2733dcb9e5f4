"""Distances between the surfaces of two masks, 2D and 3D: NSD, Hausdorff percentiles, ASSD, MASD.

Libraries disagree here because they mean different surfaces. Two are offered:

- "elements" (default): surface elements at pixel corners, weighted by their length or area (`elements.py`),
  identical to DeepMind's surface-distance. NSD and HD95 do not depend on how finely a flat side is sampled.
- "voxels": the mask's own outermost pixels, each counted once, identical to MONAI's defaults. On anisotropic
  grids it is biased: an HD95 of 5.0 mm becomes 6.4 mm on spheres with 3.0 x 1.0 x 0.7 mm voxels.

Masks are cropped to their common bounding box, and distances come from a k-d tree of surface points: memory
follows the surface instead of the volume, and two spheres of 280 voxels take 1 s instead of the 11 s of
two distance transforms. Each distance is recomputed from integer offsets, so it equals the transform's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from .elements import element_measures, neighbour_codes
from .overlap import check_masks

Surface = Literal["elements", "voxels"]


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
    box = _common_box(prediction, reference)
    points_p, weight_p = _pieces(prediction[box], measures, surface)
    points_r, weight_r = _pieces(reference[box], measures, surface)
    to_reference = _nearest(points_p, points_r, spacing)
    to_prediction = _nearest(points_r, points_p, spacing)
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


def _common_box(prediction: np.ndarray, reference: np.ndarray) -> tuple[slice, ...]:
    box = ndimage.find_objects((prediction | reference).astype(np.uint8))
    return box[0] if box else tuple(slice(0, 0) for _ in prediction.shape)


def _pieces(mask: np.ndarray, measures: np.ndarray, surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    """Integer positions [N, ndim] and weights [N] of the pieces of a mask's surface."""
    if surface == "voxels":
        points = np.argwhere(mask & np.logical_not(ndimage.binary_erosion(mask)))
        return points, np.ones(len(points))
    codes = neighbour_codes(mask)
    points = np.argwhere((codes != 0) & (codes != len(measures) - 1))
    return points, measures[codes[tuple(points.T)]]


def _nearest(points: np.ndarray, targets: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Distance (mm) from each point [N, ndim] to the nearest target [M, ndim]; infinite without targets."""
    if not len(points) or not len(targets):
        return np.full(len(points), np.inf)
    scale = np.asarray(spacing, float)
    _, nearest = KDTree(targets * scale).query(points * scale)
    # From the integer offset: 3 x 0.1 - 1 x 0.1 is not 2 x 0.1, and a tolerance of 0.2 would miss it.
    return np.sqrt(np.square((points - targets[nearest]) * scale).sum(axis=1))


def _weighted_percentile(values: np.ndarray, weights: np.ndarray, percentile: float) -> float:
    share = np.cumsum(weights) / weights.sum()
    return float(values[min(int(np.searchsorted(share, percentile / 100.0)), len(values) - 1)])
