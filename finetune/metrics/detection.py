"""Detection metrics of a set of images: average precision as COCO counts it, sensitivity as LUNA16 does.

Predicted boxes of an image are matched to the reference boxes of their class, highest score first, each to
the free one that it overlaps most, if by at least the IoU threshold (Lin et al., arXiv 1405.0312, COCO's
evaluator without crowds and sizes, 100 boxes an image and class at most). Which box is matched does not
depend on a bootstrap draw; a draw only weighs images. So matching is done once, and of the sorted boxes only
those that hit are kept, with the false ones counted between them: 10,000 draws of mAP over 29 images with
2,900 boxes take seconds.

Every function of `DetectionMetrics` takes (truth [N], predicted [N]: arrays of `Boxes`, weights [R, N]) and
answers [R] values, or one float without weights. A class without reference boxes in a draw is left out of
that draw's mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..detection.boxes import Boxes, iou
from .classification import Metric

MOST = 100  # boxes of a class and image that count
RECALLS = 100  # precision is read at 0, 1/100 .. 1 of recall
FALSE_POSITIVES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)  # an image, of the FROC curve
_CHUNK = 4_000_000  # weights held at a time


@dataclass(frozen=True, slots=True)
class Hits:
    """The boxes of one class that hit at one threshold, best first, and the false ones above each.

    `image` [D] and `hit` [D] are of all boxes down to the last that hits.
    """

    image: np.ndarray
    hit: np.ndarray
    references: np.ndarray  # [N] of each image

    @property
    def starts(self) -> np.ndarray:
        """First of the boxes between a hit and the one before, for sums of both and what lies between."""
        ends = np.flatnonzero(self.hit)
        return np.concatenate([[0], ends[:-1] + 1]) if len(ends) else np.zeros(0, int)


def match(reference: Boxes, predicted: Boxes, thresholds: Sequence[float]) -> np.ndarray:
    """Which predicted boxes hit, bool [T, D], at each IoU threshold; both of one class, scores descending."""
    hits = np.zeros((len(thresholds), len(predicted)), dtype=bool)
    if not len(reference) or not len(predicted):
        return hits
    overlap = iou(predicted.corners, reference.corners)
    for row, threshold in enumerate(thresholds):
        free = np.ones(len(reference), dtype=bool)
        for index in np.flatnonzero(overlap.max(axis=1) >= threshold):
            best = int(np.where(free, overlap[index], -1.0).argmax())
            if free[best] and overlap[index, best] >= threshold:
                free[best] = False
                hits[row, index] = True
    return hits


class DetectionMetrics:
    """Metrics of boxes by name.

    Args:
        names: of the classes.
        thresholds: IoU of `map`, ascending; the first is also the one of the FROC curve.
    """

    def __init__(self, names: Sequence[str], thresholds: Sequence[float]) -> None:
        self.names = list(names)
        self.thresholds = tuple(thresholds)
        self._pools: list[tuple[np.ndarray, np.ndarray, tuple[float, ...], list[list[Hits]]]] = []

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """By the names of a task record."""
        return {
            "map": partial(self.precision, thresholds=self.thresholds),
            "ap50": partial(self.precision, thresholds=(0.5,)),
            "ap10": partial(self.precision, thresholds=(0.1,)),
            "froc": self.sensitivity,
        }

    def parts(self, metric: str) -> Mapping[str, Metric]:
        """What a metric is a mean of: classes of an AP at one threshold, false positives an image of FROC."""
        if metric == "froc":
            return {f"{rate:g} FP": partial(self.sensitivity, rates=(rate,)) for rate in FALSE_POSITIVES}
        if metric == "map" or len(self.names) == 1:
            return {}
        whole = self.metrics[metric]
        return {name: partial(whole, label=label) for label, name in enumerate(self.names)}

    def precision(
        self,
        truth: np.ndarray,
        predicted: np.ndarray,
        weights: np.ndarray | None = None,
        *,
        thresholds: tuple[float, ...],
        label: int | None = None,
    ) -> float | np.ndarray:
        """Average precision, mean over thresholds and then over classes (or of one class)."""
        pools = self._matched(truth, predicted, thresholds)
        chosen = range(len(self.names)) if label is None else [label]
        matrix = _matrix(weights, len(truth))
        values = [np.mean([_precision(hits, matrix) for hits in pools[one]], axis=0) for one in chosen]
        return _answer(_mean(np.stack(values)), weights)

    def sensitivity(
        self,
        truth: np.ndarray,
        predicted: np.ndarray,
        weights: np.ndarray | None = None,
        *,
        rates: Sequence[float] = FALSE_POSITIVES,
    ) -> float | np.ndarray:
        """Share of the reference boxes that are found at most at `rates` false positives an image, mean over
        rates and classes (Setio et al., Medical Image Analysis 2017, section 4.1; steps are not joined)."""
        pools = self._matched(truth, predicted, self.thresholds[:1])
        matrix = _matrix(weights, len(truth))
        values = [_sensitivity(pool[0], matrix, rates) for pool in pools]
        return _answer(_mean(np.stack(values)), weights)

    def _matched(
        self, truth: np.ndarray, predicted: np.ndarray, thresholds: tuple[float, ...]
    ) -> list[list[Hits]]:
        """Hits by class and threshold; the same arrays are matched once, whatever the number of draws."""
        for a, b, wanted, pools in self._pools:
            if a is truth and b is predicted and wanted == thresholds:
                return pools
        pools = [
            _pool([one.of(label) for one in truth], [one.of(label) for one in predicted], thresholds)
            for label in range(len(self.names))
        ]
        self._pools = [*self._pools[-7:], (truth, predicted, thresholds, pools)]
        return pools


def image_precision(reference: Boxes, predicted: Boxes, names: Sequence[str]) -> dict[str, float]:
    """AP at IoU 0.5 within one image, of each class that is in its reference."""
    found = {}
    for label, name in enumerate(names):
        own = reference.of(label)
        if len(own):
            [hits] = _pool([own], [predicted.of(label)], (0.5,))
            found[name] = float(_precision(hits, np.ones((1, 1)))[0])
    return found


def _pool(truth: Sequence[Boxes], predicted: Sequence[Boxes], thresholds: Sequence[float]) -> list[Hits]:
    """Boxes of one class of all images, sorted by score (ties: in the order of the images)."""
    scores, images, hits = [np.zeros(0)], [np.zeros(0, int)], [np.zeros((len(thresholds), 0), bool)]
    for number, (reference, found) in enumerate(zip(truth, predicted, strict=True)):
        assert found.scores is not None
        order = np.argsort(-found.scores, kind="stable")[:MOST]
        best = Boxes(found.corners[order], found.labels[order], found.scores[order])
        scores.append(found.scores[order])
        images.append(np.full(len(order), number))
        hits.append(match(reference, best, thresholds))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    image, table = np.concatenate(images)[order], np.concatenate(hits, axis=1)[:, order]
    references = np.array([len(one) for one in truth], dtype=float)
    pools = []
    for row in table:
        count = int(np.flatnonzero(row)[-1]) + 1 if row.any() else 0
        pools.append(Hits(image[:count], row[:count], references))
    return pools


def _precision(hits: Hits, matrix: np.ndarray) -> np.ndarray:
    """Interpolated average precision [R]; nan where a draw holds no reference box."""
    found = matrix @ hits.references
    result = np.where(found > 0, 0.0, np.nan)
    starts = hits.starts
    if not len(starts):
        return result
    for rows in _chunks(len(matrix), len(hits.image)):
        weights = matrix[rows][:, hits.image]
        right = np.cumsum(weights[:, hits.hit], axis=1)
        called = np.cumsum(np.add.reduceat(weights, starts, axis=1), axis=1)
        precision = np.divide(right, called, out=np.zeros_like(right), where=called > 0)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        result[rows] += _read(right, best, found[rows])
    return result


def _read(right: np.ndarray, best: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Mean of the precision at recalls 0, 0.01 .. 1, which is 0 beyond the last that is reached: [R].

    Recall is compared as whole numbers (100 hits against k references), where fractions would round.
    """
    count = right.shape[1]
    step = RECALLS * found.max() + 1
    offset = np.arange(len(right))[:, None] * step
    table = np.minimum(RECALLS * right, step - 1) + offset
    wanted = np.arange(RECALLS + 1)[None, :] * found[:, None] + offset
    place = np.searchsorted(table.ravel(), wanted.ravel()).reshape(wanted.shape)
    place -= np.arange(len(right))[:, None] * count
    padded = np.pad(best, ((0, 0), (0, 1)))
    return np.take_along_axis(padded, np.clip(place, 0, count), axis=1).mean(axis=1)


def _sensitivity(hits: Hits, matrix: np.ndarray, rates: Sequence[float]) -> np.ndarray:
    """Mean over rates of the share of references found, [R]; nan where a draw holds none."""
    found = matrix @ hits.references
    result = np.where(found > 0, 0.0, np.nan)
    starts = hits.starts
    if not len(starts):
        return result
    images = matrix.sum(axis=1)
    for rows in _chunks(len(matrix), len(hits.image)):
        weights = matrix[rows][:, hits.image]
        right = weights[:, hits.hit]
        wrong = np.cumsum(np.add.reduceat(weights, starts, axis=1) - right, axis=1)
        shares = [(right * (wrong <= rate * images[rows, None])).sum(axis=1) for rate in rates]
        result[rows] += np.mean(shares, axis=0) / np.maximum(found[rows], 1e-12)
    return result


def _chunks(rows: int, columns: int) -> list[slice]:
    size = max(1, _CHUNK // max(columns, 1))
    return [slice(start, min(rows, start + size)) for start in range(0, rows, size)]


def _matrix(weights: np.ndarray | None, count: int) -> np.ndarray:
    if not count:
        raise ValueError("there is no image to score")
    matrix = np.ones((1, count)) if weights is None else np.atleast_2d(np.asarray(weights, float))
    if matrix.shape[1] != count:
        raise ValueError(f"weights {matrix.shape} do not fit {count} images")
    return matrix


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over classes [K, R] of those that a draw holds."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=0)
    total = np.where(defined, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _answer(values: np.ndarray, weights: np.ndarray | None) -> float | np.ndarray:
    return float(values[0]) if weights is None else values
