"""Overlap metrics against MONAI, and the rows of a case under the empty policy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from medloom.finetune.metrics import CaseRow, EmptyPolicy, segmentation_case
from medloom.finetune.metrics.cases import DISTANCES, OVERLAPS
from medloom.finetune.metrics.overlap import dice, iou

ALL = (*OVERLAPS, *DISTANCES)
STRUCTURES = {1: "organ", 2: "lesion"}


def by_key(rows: list[CaseRow]) -> dict[tuple[str, str], CaseRow]:
    return {(row.structure, row.metric): row for row in rows}


def test_dice_and_iou_equal_monai_on_300_random_cases() -> None:
    from monai.metrics import compute_dice, compute_iou

    rng = np.random.default_rng(0)
    for _ in range(300):
        shape = tuple(rng.integers(1, 9, int(rng.integers(2, 4))))
        prediction, reference = (rng.random(shape) < rng.uniform(0.05, 0.9) for _ in range(2))
        masks = [torch.from_numpy(mask)[None, None] for mask in (prediction, reference)]
        for ours, theirs in ((dice, compute_dice), (iou, compute_iou)):
            expected = float(theirs(*masks, include_background=True, ignore_empty=False))
            value = ours(prediction, reference)
            if prediction.any() or reference.any():
                assert value == pytest.approx(expected, abs=1e-6)
            else:
                assert math.isnan(value)


def test_rows_equal_the_metrics_of_each_structure_alone() -> None:
    from medloom.finetune.metrics.surface import assd, hausdorff, masd, nsd, surface_distances

    rng = np.random.default_rng(1)
    for _ in range(40):
        prediction, reference = (rng.integers(0, 4, (9, 8, 7)).astype(np.uint8) for _ in range(2))
        spacing = (3.0, 1.0, 0.7)
        rows = by_key(segmentation_case(prediction, reference, spacing, STRUCTURES, 1.5, metrics=ALL))
        for label, name in STRUCTURES.items():
            a, b = prediction == label, reference == label
            distances = surface_distances(a, b, spacing)
            expected = [
                dice(a, b),
                iou(a, b),
                nsd(distances, 1.5),
                hausdorff(distances, 95),
                hausdorff(distances),
            ]
            expected += [assd(distances), masd(distances)]
            assert [rows[name, metric].value for metric in ALL] == expected
            assert {rows[name, metric].status for metric in ALL} == {"ok"}


def test_rows_come_in_the_order_of_structures_and_metrics() -> None:
    labels = np.array([[1, 2], [2, 1]])
    rows = segmentation_case(labels, labels, None, {2: "lesion", 1: "organ"}, 1.0, metrics=("nsd", "dice"))
    order = [(row.structure, row.metric) for row in rows]
    assert order == [("lesion", "nsd"), ("lesion", "dice"), ("organ", "nsd"), ("organ", "dice")]


def test_empty_policy() -> None:
    organ_only = np.zeros((4, 3, 12), np.uint8)
    organ_only[1:3, 1:2, 1:5] = 1
    both = organ_only.copy()
    both[3, 2, 11] = 2
    spacing = (3.0, 4.0, 1.0)  # diagonal of 12 x 12 x 12 mm
    diagonal = math.sqrt(3 * 12**2)
    for prediction, reference, reason in ((organ_only, both, "prediction_empty"), (both, organ_only, "reference_empty")):  # fmt: skip  # noqa: E501
        rows = by_key(segmentation_case(prediction, reference, spacing, STRUCTURES, 2.0, metrics=ALL))
        for metric in ALL:
            row = rows["lesion", metric]
            assert (row.status, row.reason) == ("replaced", reason)
            assert row.value == pytest.approx(0.0 if metric in OVERLAPS else diagonal)
            assert rows["organ", metric].status == "ok"
    rows = by_key(segmentation_case(organ_only, organ_only, spacing, STRUCTURES, 2.0, metrics=ALL))
    assert all(rows["lesion", m].status == "excluded" and math.isnan(rows["lesion", m].value) for m in ALL)
    rows = by_key(
        segmentation_case(
            organ_only, organ_only, spacing, STRUCTURES, 2.0, metrics=ALL, policy=EmptyPolicy(both="perfect")
        )
    )
    assert [rows["lesion", m].value for m in ALL] == [1, 1, 1, 0, 0, 0, 0]
    assert {rows["lesion", m].status for m in ALL} == {"replaced"}


def test_replaced_distance_is_never_better_than_a_measured_one() -> None:
    corners = np.zeros((6, 7, 8), np.uint8), np.zeros((6, 7, 8), np.uint8)
    corners[0][0, 0, 0] = corners[1][-1, -1, -1] = 1
    (worst,) = segmentation_case(*corners, (2.0, 1.0, 3.0), {1: "a"}, 1.0, metrics=("hd",))
    (missed,) = segmentation_case(corners[0], corners[0] * 0, (2.0, 1.0, 3.0), {1: "a"}, 1.0, metrics=("hd",))
    assert worst.status == "ok"
    assert missed.value > worst.value


def test_tolerance_may_differ_by_structure_and_spacing_none_means_pixels() -> None:
    reference = np.zeros((20, 20), np.uint8)
    reference[2:8, 2:8], reference[12:18, 12:18] = 1, 2
    prediction = np.roll(reference, 2, axis=1)
    rows = by_key(
        segmentation_case(
            prediction, reference, None, STRUCTURES, {"organ": 2.0, "lesion": 0.0}, metrics=("nsd", "hd")
        )
    )
    assert rows["organ", "nsd"].value == 1.0
    assert rows["lesion", "nsd"].value < 1.0
    assert rows["organ", "hd"].value == rows["lesion", "hd"].value == 2.0


def test_unlisted_labels_are_background() -> None:
    labels = np.array([[0, 7], [9, 1]], np.int16)
    (row,) = segmentation_case(labels, np.where(labels == 1, 1, 0), None, {1: "a"}, 1.0, metrics=("dice",))
    assert row.value == 1.0


def test_refusals() -> None:
    labels = np.zeros((3, 3), int)
    with pytest.raises(ValueError, match="did you mean dice"):
        segmentation_case(labels, labels, None, {1: "a"}, 1.0, metrics=("dise",))
    with pytest.raises(ValueError, match="differ in shape"):
        segmentation_case(labels, labels[:2], None, {1: "a"}, 1.0)
    with pytest.raises(ValueError, match="integer"):
        segmentation_case(labels.astype(float), labels, None, {1: "a"}, 1.0)
    with pytest.raises(ValueError, match="1 or more"):
        segmentation_case(labels, labels, None, {0: "background"}, 1.0)
    with pytest.raises(ValueError, match="empty policy"):
        EmptyPolicy(both="drop")  # type: ignore[arg-type]
