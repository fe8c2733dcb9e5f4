"""One label map or label out of several: majority, or STAPLE, which weighs annotators by how good they are.

Majority counts heads: the value with most votes, of equally many the smallest, so that two annotators leave
what both marked. STAPLE (Warfield, Zou and Wells 2004, IEEE TMI 23:903-921) estimates each annotator's
sensitivity and specificity together with the truth; it is SimpleITK's. Its estimates depend on how much
background it sees, so it is run on a box twice as long as that of all marks together: the field of view of
the scan does not matter.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..errors import ConfigError
from .kinds import LabelKind

METHODS = ("majority", "staple")

ITERATIONS = 100  # of STAPLE's expectation maximisation; it stops earlier when it has converged


@dataclass(frozen=True, slots=True)
class Staple:
    """A consensus and how good each annotator was by it, for each label in the order of the masks."""

    mask: np.ndarray
    sensitivity: dict[int, list[float]] = field(default_factory=dict)
    specificity: dict[int, list[float]] = field(default_factory=dict)


def consensus(masks: Sequence[np.ndarray], method: str) -> np.ndarray:
    """One label map [D, H, W] or [H, W] of several, by one of METHODS, in the widest of their dtypes."""
    return majority(masks) if method == "majority" else staple(masks).mask


def majority(masks: Sequence[np.ndarray]) -> np.ndarray:
    """The value that most masks have at each voxel; of several the smallest (0 is background)."""
    dtype = np.result_type(*masks)
    best = np.zeros(masks[0].shape, dtype)
    votes = np.zeros(masks[0].shape, np.uint8)
    for value in _values(masks, background=True):
        count = np.zeros(masks[0].shape, np.uint8)
        for mask in masks:
            count += mask == value
        more = count > votes
        best[more], votes[more] = value, count[more]
    return best


def staple(masks: Sequence[np.ndarray]) -> Staple:
    """STAPLE, one label against the rest at a time; of several above 0.5 the most probable.

    Raises:
        ConfigError: SimpleITK is not installed.
    """
    require_simpleitk()
    import SimpleITK as sitk

    box = _region(masks)
    result = np.zeros(masks[0].shape, np.result_type(*masks))
    inside = result[box]
    likely = np.full(inside.shape, 0.5)
    sensitivity, specificity = {}, {}
    for value in _values(masks, background=False):
        engine = sitk.STAPLEImageFilter()
        engine.SetForegroundValue(1.0)
        engine.SetMaximumIterations(ITERATIONS)
        engine.SetNumberOfThreads(1)  # sums in one order: the same bytes on every machine
        marks = [sitk.GetImageFromArray((mask[box] == value).astype(np.uint8)) for mask in masks]
        probability = sitk.GetArrayFromImage(engine.Execute(marks))
        more = probability > likely
        inside[more], likely[more] = value, probability[more]
        sensitivity[value] = [float(one) for one in engine.GetSensitivity()]
        specificity[value] = [float(one) for one in engine.GetSpecificity()]
    return Staple(result, sensitivity, specificity)


def require_simpleitk() -> None:
    """Raise ConfigError when SimpleITK is not installed."""
    if find_spec("SimpleITK") is None:
        raise ConfigError("STAPLE needs SimpleITK; install it with pip install 'medloom[formats]'")


def consensus_labels(said: Sequence[Mapping[str, Any]], kinds: Mapping[str, LabelKind]) -> dict[str, Any]:
    """One value a label from what several annotators said (tidy labels, see kinds.py).

    single and undeclared: the most frequent, nothing when two are equally frequent; multi-label: what more
    than half name; ordinal: the lower median; value: the median.
    """
    result: dict[str, Any] = {}
    for name in sorted({name for labels in said for name in labels}):
        values = [labels[name] for labels in said if name in labels]
        found = _agreed(values, kinds.get(name, LabelKind()))
        if found is not None:
            result[name] = found
    return result


def _agreed(values: list[Any], kind: LabelKind) -> Any:
    if kind.kind == "value":
        return float(statistics.median(values))
    if kind.kind == "ordinal":
        return kind.values[statistics.median_low([kind.values.index(value) for value in values])]
    if kind.kind == "multi-label":
        counts = Counter(one for value in values for one in value)
        chosen = [one for one, count in counts.items() if 2 * count > len(values)]
        return [one for one in kind.values if one in chosen] if kind.values else sorted(chosen, key=str)
    ranked = Counter(values).most_common(2)
    return None if len(ranked) == 2 and ranked[0][1] == ranked[1][1] else ranked[0][0]


def _values(masks: Sequence[np.ndarray], *, background: bool) -> list[int]:
    found = sorted({int(value) for mask in masks for value in np.unique(mask)} | {0})
    return found if background else found[1:]


def _region(masks: Sequence[np.ndarray]) -> tuple[slice, ...]:
    """Box of all marks, longer by half of its length on each side."""
    union = np.zeros(masks[0].shape, bool)
    for mask in masks:
        union |= mask != 0
    box = []
    for axis, length in enumerate(union.shape):
        hit = np.flatnonzero(union.any(axis=tuple(a for a in range(union.ndim) if a != axis)))
        first, last = (int(hit[0]), int(hit[-1]) + 1) if len(hit) else (0, length)
        margin = -(-(last - first) // 2)
        box.append(slice(max(0, first - margin), min(length, last + margin)))
    return tuple(box)
