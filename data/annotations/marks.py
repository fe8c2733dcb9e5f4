"""How far two annotators' boxes and landmarks lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..sample import Shape

MATCH = 0.5  # IoU from which two boxes are the same finding


def compare_marks(
    a: Sequence[Shape], b: Sequence[Shape], spacing: Sequence[float] | None
) -> list[dict[str, Any]]:
    """Rows {"kind", "label", ...} for each label with marks of one kind by either annotator.

    point: `distance` between the two landmarks of a label (mm; pixels without spacing), where each set one.
    box: the pairs that overlap most (Hungarian assignment by IoU): their number `matched` with an IoU of at
    least 0.5, their mean `iou`, and `f1` = 2 matched / (boxes of a + boxes of b).
    """
    rows: list[dict[str, Any]] = []
    labels = sorted({(s.kind, s.label) for s in (*a, *b) if s.kind in ("point", "box")})
    for kind, label in labels:
        mine, theirs = (
            [np.asarray(s.points, float) for s in side if (s.kind, s.label) == (kind, label)]
            for side in (a, b)
        )
        if kind == "point":
            if len(mine) == len(theirs) == 1:
                apart = (mine[0][0] - theirs[0][0]) * np.asarray(spacing or [1.0] * mine[0].shape[1])
                rows.append({"kind": kind, "label": label, "distance": float(np.linalg.norm(apart))})
        else:
            rows.append({"kind": kind, "label": label, **match_boxes(mine, theirs)})
    return rows


def match_boxes(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> dict[str, Any]:
    """Boxes [2, axes] (low, high corner) of two annotators paired so that their IoU is largest in all."""
    from scipy.optimize import linear_sum_assignment

    table = np.array([[iou(one, other) for other in b] for one in a]).reshape(len(a), len(b))
    rows, columns = linear_sum_assignment(-table)
    found = table[rows, columns]
    matched = found[found >= MATCH]
    return {
        "boxes": [len(a), len(b)],
        "matched": len(matched),
        "iou": float(matched.mean()) if len(matched) else None,
        "f1": 2 * len(matched) / (len(a) + len(b)),
    }


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes [2, axes]."""
    inner = float(np.clip(np.minimum(a[1], b[1]) - np.maximum(a[0], b[0]), 0, None).prod())
    union = float((a[1] - a[0]).prod() + (b[1] - b[0]).prod()) - inner
    return inner / union if union > 0 else 0.0
