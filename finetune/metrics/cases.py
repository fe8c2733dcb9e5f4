"""Per-case rows of a segmentation, by structure and metric, with an explicit policy for empty masks.

Every mean, rank and figure of a report is computed from these rows. Libraries drop or redefine the values of
empty structures silently; here each row says whether its value was measured ("ok"), set by the policy
("replaced") or left out ("excluded"), and why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from ...data.errors import nearest
from .overlap import dice, iou
from .surface import SurfaceDistances, assd, foreground_box, hausdorff, masd, nsd, surface_distances

Status = Literal["ok", "excluded", "replaced"]
OVERLAPS = ("dice", "iou", "nsd")
DISTANCES = ("hd95", "hd", "assd", "masd")
DEFAULT_METRICS = ("dice", "iou", "nsd", "hd95", "assd")


@dataclass(frozen=True, slots=True)
class EmptyPolicy:
    """What a case counts when a structure is missing from the reference, from the prediction, or from both.

    One missing: overlaps count 0 and distances count the image's diagonal, the largest distance in it.
    Both missing: the case is left out of this structure's mean, or counts as perfect with `both="perfect"`.
    """

    both: Literal["exclude", "perfect"] = "exclude"

    def __post_init__(self) -> None:
        if self.both not in ("exclude", "perfect"):
            raise ValueError(f"empty policy both={self.both!r}: expected 'exclude' or 'perfect'")

    def describe(self) -> str:
        """The policy in one sentence, printed in every report."""
        both = "left out" if self.both == "exclude" else "counted as perfect (overlap 1, distance 0)"
        return (
            f"Structure empty in prediction and reference: {both}. Empty in one of them: Dice, IoU and NSD "
            "count 0, distances count the image diagonal."
        )


@dataclass(frozen=True, slots=True)
class CaseRow:
    """One value of the long table. `value` is nan exactly when `status` is "excluded"."""

    structure: str
    metric: str
    value: float
    status: Status
    reason: str = ""  # "", "both_empty", "reference_empty" (a false positive) or "prediction_empty" (a miss)


def segmentation_case(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float] | None,
    structures: Mapping[int, str],
    tolerance_mm: float | Mapping[str, float],
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    policy: EmptyPolicy | None = None,
) -> list[CaseRow]:
    """Compare two label maps [H, W] or [D, H, W] structure by structure.

    Args:
        spacing: millimetres in array order; None for a plain picture: distances are then in pixels.
        structures: label value -> name; the order of the rows.
        tolerance_mm: NSD tolerance, one for all structures or one for each name.

    Raises:
        ValueError: shapes differ, labels are not integers, a metric or a structure's tolerance is unknown.
    """
    _check(prediction, reference, structures, metrics)
    policy = policy or EmptyPolicy()
    steps = tuple(spacing) if spacing is not None else (1.0,) * reference.ndim
    diagonal = math.dist(
        (0.0,) * reference.ndim, [n * s for n, s in zip(reference.shape, steps, strict=True)]
    )
    boxes_p, boxes_r = _boxes(prediction, structures), _boxes(reference, structures)
    rows: list[CaseRow] = []
    for label, name in structures.items():
        box_p, box_r = boxes_p.get(label), boxes_r.get(label)
        if box_p is None or box_r is None:
            rows += _empty_rows(name, metrics, box_p is None, box_r is None, diagonal, policy)
            continue
        box = tuple(
            slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(box_p, box_r, strict=True)
        )
        tolerance = tolerance_mm[name] if isinstance(tolerance_mm, Mapping) else tolerance_mm
        values = _values(prediction[box] == label, reference[box] == label, steps, tolerance, metrics)
        rows += [CaseRow(name, metric, values[metric], "ok") for metric in metrics]
    return rows


def _values(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: tuple[float, ...],
    tolerance_mm: float,
    metrics: Sequence[str],
) -> dict[str, float]:
    values = {}
    distances: SurfaceDistances | None = None
    if not {"dice", "iou"}.issuperset(metrics):
        distances = surface_distances(prediction, reference, spacing)
    for metric in metrics:
        if metric == "dice":
            values[metric] = dice(prediction, reference)
        elif metric == "iou":
            values[metric] = iou(prediction, reference)
        else:
            assert distances is not None
            values[metric] = _distance_value(metric, distances, tolerance_mm)
    return values


def _distance_value(metric: str, distances: SurfaceDistances, tolerance_mm: float) -> float:
    if metric == "nsd":
        return nsd(distances, tolerance_mm)
    if metric == "hd95":
        return hausdorff(distances, 95.0)
    if metric == "hd":
        return hausdorff(distances)
    return assd(distances) if metric == "assd" else masd(distances)


def _empty_rows(
    name: str,
    metrics: Sequence[str],
    prediction_empty: bool,
    reference_empty: bool,
    diagonal: float,
    policy: EmptyPolicy,
) -> list[CaseRow]:
    both = prediction_empty and reference_empty
    reason = "both_empty" if both else "prediction_empty" if prediction_empty else "reference_empty"
    if both and policy.both == "exclude":
        return [CaseRow(name, metric, float("nan"), "excluded", reason) for metric in metrics]
    worst_or_best = {True: (1.0, 0.0), False: (0.0, diagonal)}[both]
    return [CaseRow(name, m, worst_or_best[m in DISTANCES], "replaced", reason) for m in metrics]


def _boxes(labels: np.ndarray, structures: Mapping[int, str]) -> dict[int, tuple[slice, ...]]:
    """Box of each structure that is present, in one pass over what is not background."""
    around = foreground_box(labels)
    if around is None:
        return {}
    found = ndimage.find_objects(labels[around], max_label=max(structures))
    return {
        label: tuple(
            slice(outer.start + inner.start, outer.start + inner.stop)
            for outer, inner in zip(around, box, strict=True)
        )
        for label in structures
        if (box := found[label - 1]) is not None
    }


def _check(
    prediction: np.ndarray, reference: np.ndarray, structures: Mapping[int, str], metrics: Sequence[str]
) -> None:
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")
    for array in (prediction, reference):
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"label maps must be integer, not {array.dtype}")
    if not structures or min(structures) < 1:
        raise ValueError(f"structures {dict(structures)}: expected label values of 1 or more")
    known = {*OVERLAPS, *DISTANCES}
    for metric in metrics:
        if metric not in known:
            raise ValueError(f"unknown metric {metric!r}{nearest(metric, known)}")
