"""finetune/metrics/detection.py against a plain count of its own definition, and against MONAI's COCO."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from medloom.finetune.detection.boxes import Boxes, iou
from medloom.finetune.metrics.detection import FALSE_POSITIVES, DetectionMetrics, image_precision
from medloom.finetune.statistics import bootstrap_metric

COCO = tuple(np.round(np.arange(0.5, 1.0, 0.05), 2))


def scene(
    rng: np.random.Generator, images: int, axes: int, classes: int, digits: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Reference boxes, and predictions that are some of them, moved, and some false ones."""
    truth, predicted = np.empty(images, dtype=object), np.empty(images, dtype=object)
    for number in range(images):
        count = int(rng.integers(0, 5))
        low = rng.uniform(0, 40, (count, axes))
        reference = Boxes(
            np.hstack([low, low + rng.uniform(4, 15, (count, axes))]), rng.integers(0, classes, count)
        )
        near = np.repeat(reference.corners, 2, axis=0) + rng.normal(0, 1.5, (2 * count, 2 * axes))
        false = rng.uniform(0, 40, (int(rng.integers(0, 4)), axes))
        corners = np.vstack([near, np.hstack([false, false + 8])])
        labels = np.concatenate([np.repeat(reference.labels, 2), rng.integers(0, classes, len(false))])
        kept = (corners[:, axes:] > corners[:, :axes]).all(axis=1) & (rng.random(len(corners)) < 0.8)
        # Rounded to two digits, scores are tied now and then.
        scores = np.round(rng.random(int(kept.sum())), digits)
        order = np.argsort(-scores, kind="stable")
        found = Boxes(corners[kept][order], labels[kept][order], scores[order])
        truth[number], predicted[number] = reference, found
    return truth, predicted


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two boxes, side by side."""
    axes, inner, volumes = len(a) // 2, 1.0, [1.0, 1.0]
    for axis in range(axes):
        inner *= max(0.0, min(a[axis + axes], b[axis + axes]) - max(a[axis], b[axis]))
        for index, box in enumerate((a, b)):
            volumes[index] *= box[axis + axes] - box[axis]
    return inner / (sum(volumes) - inner)


def counted(truth: np.ndarray, predicted: np.ndarray, label: int, threshold: float) -> tuple[list[bool], int]:
    """Hits of all boxes of a class, best score first, and the number of references; box by box."""
    entries, references = [], 0
    for reference, found in zip(truth, predicted, strict=True):
        own = [box for box, one in zip(reference.corners, reference.labels, strict=True) if one == label]
        references += len(own)
        taken: set[int] = set()
        for box, one, score in zip(found.corners, found.labels, found.scores, strict=True):
            if one != label:
                continue
            values = [(overlap(box, other), -k) for k, other in enumerate(own) if k not in taken]
            best = max(values, default=(0.0, 0))
            hit = best[0] >= threshold
            if hit:
                taken.add(-best[1])
            entries.append((score, hit))
    return [hit for _, hit in sorted(entries, key=lambda entry: -entry[0])], references


def plain_precision(hits: list[bool], references: int) -> float:
    """Mean over recalls 0 .. 1 of the best precision at that recall or above."""
    points, right = [], 0
    for rank, hit in enumerate(hits, start=1):
        right += hit
        points.append((right, right / rank))
    values = []
    for step in range(101):
        reached = [precision for found, precision in points if 100 * found >= step * references]
        values.append(max(reached, default=0.0))
    return sum(values) / 101


def plain_sensitivity(hits: list[bool], references: int, images: int, rate: float) -> float:
    best = right = wrong = 0
    for hit in hits:
        right, wrong = right + hit, wrong + (not hit)
        if wrong <= rate * images:
            best = right
    return best / references


def expected(truth: np.ndarray, predicted: np.ndarray, classes: int, thresholds: tuple[float, ...]) -> float:
    values = []
    for label in range(classes):
        found = [counted(truth, predicted, label, threshold) for threshold in thresholds]
        if found[0][1]:
            values.append(np.mean([plain_precision(*one) for one in found]))
    return float(np.mean(values)) if values else math.nan


@pytest.mark.parametrize("axes", [2, 3])
def test_precision_and_sensitivity_are_those_of_a_plain_count(axes: int) -> None:
    rng = np.random.default_rng(axes)
    for _ in range(40):
        classes = int(rng.integers(1, 4))
        truth, predicted = scene(rng, int(rng.integers(1, 7)), axes, classes)
        metrics = DetectionMetrics([f"c{k}" for k in range(classes)], (0.3, 0.5, 0.7))
        for name, thresholds in (("map", (0.3, 0.5, 0.7)), ("ap50", (0.5,)), ("ap10", (0.1,))):
            found = metrics.metrics[name](truth, predicted)
            assert found == pytest.approx(
                expected(truth, predicted, classes, thresholds), abs=1e-12, nan_ok=True
            )
        curves = []
        for label in range(classes):
            hits, references = counted(truth, predicted, label, 0.3)
            if references:
                curves.append(
                    [plain_sensitivity(hits, references, len(truth), rate) for rate in FALSE_POSITIVES]
                )
        froc = float(np.mean(curves)) if curves else math.nan
        assert metrics.metrics["froc"](truth, predicted) == pytest.approx(froc, abs=1e-12, nan_ok=True)
        for column, (part, metric) in enumerate(metrics.parts("froc").items()):
            assert part == f"{FALSE_POSITIVES[column]:g} FP"
            one = float(np.mean([curve[column] for curve in curves])) if curves else math.nan
            assert metric(truth, predicted) == pytest.approx(one, abs=1e-12, nan_ok=True)


def test_a_weight_of_two_is_an_image_that_is_there_twice() -> None:
    rng = np.random.default_rng(5)
    truth, predicted = scene(rng, 8, 2, 2, digits=12)
    metrics = DetectionMetrics(["a", "b"], COCO)
    draws = rng.multinomial(8, [1 / 8] * 8, size=30).astype(float)
    for metric in metrics.metrics.values():
        found = np.asarray(metric(truth, predicted, draws))
        assert found.shape == (30,)
        for row, value in zip(draws.astype(int), found, strict=True):
            again = metric(np.repeat(truth, row), np.repeat(predicted, row))
            assert value == pytest.approx(again, abs=1e-12, nan_ok=True)


def test_map_is_that_of_monai() -> None:
    from monai.apps.detection.metrics.coco import COCOMetric
    from monai.apps.detection.metrics.matching import matching_batch
    from monai.data.box_utils import box_iou

    rng = np.random.default_rng(11)
    for _ in range(5):
        truth, predicted = scene(rng, 6, 3, 2)
        oracle = COCOMetric(
            classes=["a", "b"], iou_list=[0.5], iou_range=(0.5, 0.95, 0.05), max_detection=[100]
        )
        matched = matching_batch(
            iou_fn=box_iou,
            iou_thresholds=oracle.iou_thresholds,
            pred_boxes=[one.corners for one in predicted],
            pred_classes=[one.labels for one in predicted],
            pred_scores=[one.scores for one in predicted],
            gt_boxes=[one.corners for one in truth],
            gt_classes=[one.labels for one in truth],
        )
        values = oracle(matched)[0]
        metrics = DetectionMetrics(["a", "b"], COCO).metrics
        # MONAI divides where this compares whole numbers: a recall of 0.29 may fall on either side.
        theirs = values["mAP_IoU_0.50_0.95_0.05_MaxDet_100"]
        assert metrics["map"](truth, predicted) == pytest.approx(theirs, abs=2e-3)
        assert metrics["ap50"](truth, predicted) == pytest.approx(values["AP_IoU_0.50_MaxDet_100"], abs=2e-3)


def boxes(*corners: tuple[float, ...], scores: tuple[float, ...] | None = None) -> Boxes:
    axes = 2
    table = np.asarray(corners, float).reshape(-1, 2 * axes)
    return Boxes(table, np.zeros(len(table), int), None if scores is None else np.asarray(scores, float))


def whole(*found: Boxes) -> np.ndarray:
    result = np.empty(len(found), dtype=object)
    result[:] = found
    return result


def test_edges_of_the_definition() -> None:
    metrics = DetectionMetrics(["a"], (0.5,)).metrics
    one, nothing = boxes((0, 0, 10, 10)), boxes(scores=())
    perfect = boxes((0, 0, 10, 10), scores=(0.9,))
    assert metrics["ap50"](whole(one), whole(perfect)) == 1
    assert metrics["froc"](whole(one), whole(perfect)) == 1
    assert metrics["ap50"](whole(one), whole(nothing)) == 0
    assert metrics["froc"](whole(one), whole(nothing)) == 0
    assert math.isnan(float(metrics["map"](whole(boxes()), whole(perfect))))  # nothing to find
    # A second box on the same object is a false one; below the hit it costs nothing, above it does.
    low = boxes((0, 0, 10, 10), (1, 0, 10, 10), scores=(0.9, 0.8))
    high = boxes((20, 20, 30, 30), (0, 0, 10, 10), scores=(0.9, 0.8))
    assert metrics["ap50"](whole(one), whole(low)) == 1
    assert metrics["ap50"](whole(one), whole(high)) == pytest.approx(0.5)
    # 0.5 is met, and what lies below is not
    assert metrics["ap50"](whole(one), whole(boxes((0, 0, 10, 5), scores=(1.0,)))) == 1
    assert metrics["ap50"](whole(one), whole(boxes((0, 0, 10, 4.9), scores=(1.0,)))) == 0
    with pytest.raises(ValueError, match="no image"):
        metrics["map"](whole(), whole())
    with pytest.raises(ValueError, match="do not fit"):
        metrics["map"](whole(one), whole(perfect), np.ones((2, 3)))
    assert image_precision(one, high, ["a"]) == {"a": pytest.approx(0.5)}
    assert image_precision(boxes(), high, ["a"]) == {}


def test_overlap_of_boxes_that_touch_is_zero() -> None:
    a = np.array([[0.0, 0, 2, 2], [0, 0, 4, 2]])
    b = np.array([[2.0, 0, 4, 2], [0, 0, 2, 2], [1, 1, 1, 1]])
    assert np.allclose(iou(a, b), [[0, 1, 0], [0.5, 0.5, 0]])


def test_draws_cost_little_beside_a_count_for_each() -> None:
    rng = np.random.default_rng(2)
    truth, predicted = scene(rng, 40, 2, 2)
    metric = DetectionMetrics(["a", "b"], (0.5,)).metrics["ap50"]
    begin = time.perf_counter()
    for _ in range(3):
        expected(truth, predicted, 2, (0.5,))
    plain = (time.perf_counter() - begin) / 3
    begin = time.perf_counter()
    found = bootstrap_metric(metric, truth, predicted, list(range(40)), n=2000)
    assert time.perf_counter() - begin < 2000 * plain / 10
    assert found.low < found.mean < found.high
