"""Classification metrics equal scikit-learn, weighted ones equal the metric of the repeated cases."""

from __future__ import annotations

import numpy as np
import pytest
from medloom.finetune.metrics import CLASSIFICATION
from medloom.finetune.metrics.classification import (  # fmt: skip
    ECE_BINS,
    accuracy,
    auc,
    average_precision,
    balanced_accuracy,
    brier,
    ece,
)
from sklearn import metrics as sk
from sklearn.preprocessing import label_binarize


def cases(seed: int, count: int):
    """Random (truth, score) with ties, imbalance and every class present; K from 2 to 5."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        classes, n = int(rng.integers(2, 6)), int(rng.integers(12, 60))
        truth = np.r_[np.arange(classes), rng.choice(classes, n - classes, p=rng.dirichlet(np.ones(classes)))]
        logits = rng.standard_normal((n, classes)) + 1.5 * np.eye(classes)[truth] * rng.random()
        score = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        if rng.random() < 0.5:  # ties, as coarse probabilities give
            score = np.round(score * 8) + 0.5
            score /= score.sum(axis=1, keepdims=True)
        yield truth, score


def test_equal_scikit_learn_on_300_random_cases() -> None:
    for truth, score in cases(0, 300):
        classes = score.shape[1]
        if classes == 2:
            assert auc(truth, score) == pytest.approx(sk.roc_auc_score(truth, score[:, 1]), abs=1e-12)
            expected = sk.average_precision_score(truth, score[:, 1])
            assert brier(truth, score) == pytest.approx(sk.brier_score_loss(truth, score[:, 1]), abs=1e-12)
        else:
            assert auc(truth, score) == pytest.approx(
                sk.roc_auc_score(truth, score, multi_class="ovr"), abs=1e-12
            )
            expected = sk.average_precision_score(label_binarize(truth, classes=range(classes)), score)
            onehot = np.eye(classes)[truth]
            assert brier(truth, score) == pytest.approx(np.square(score - onehot).sum(1).mean(), abs=1e-12)
        assert average_precision(truth, score) == pytest.approx(expected, abs=1e-12)
        decided = score.argmax(axis=1)
        assert accuracy(truth, score) == pytest.approx(sk.accuracy_score(truth, decided), abs=1e-12)
        expected = sk.balanced_accuracy_score(truth, decided)
        assert balanced_accuracy(truth, score) == pytest.approx(expected, abs=1e-12)


def test_multi_label_equals_scikit_learn_and_medmnist() -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        truth = np.r_[np.zeros((1, 4), int), np.ones((1, 4), int), rng.integers(0, 2, (28, 4))]
        score = np.round(rng.random(truth.shape), 1)
        assert auc(truth, score) == pytest.approx(sk.roc_auc_score(truth, score), abs=1e-12)
        expected = sk.average_precision_score(truth, score)
        assert average_precision(truth, score) == pytest.approx(expected, abs=1e-12)
        decided = score > 0.5
        expected = np.mean([sk.accuracy_score(truth[:, k], decided[:, k]) for k in range(4)])
        assert accuracy(truth, score) == pytest.approx(expected, abs=1e-12)
        expected = np.mean([sk.balanced_accuracy_score(truth[:, k], decided[:, k]) for k in range(4)])
        assert balanced_accuracy(truth, score) == pytest.approx(expected, abs=1e-12)
        expected = np.mean([sk.brier_score_loss(truth[:, k], score[:, k]) for k in range(4)])
        assert brier(truth, score) == pytest.approx(expected, abs=1e-12)


def test_ece_equals_a_plain_loop() -> None:
    for truth, score in cases(5, 60):
        confidence, right = score.max(axis=1), score.argmax(axis=1) == truth
        expected = 0.0
        for low in np.arange(ECE_BINS) / ECE_BINS:
            inside = (confidence > low) & (confidence <= low + 1 / ECE_BINS)
            if inside.any():
                expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        assert ece(truth, score) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", sorted(CLASSIFICATION))
def test_weights_equal_repeated_cases(name: str) -> None:
    metric, rng = CLASSIFICATION[name], np.random.default_rng(9)
    for truth, score in cases(6, 25):
        weights = rng.integers(0, 4, (5, len(truth)))
        weights[:, : score.shape[1]] += 1  # every class stays present
        expected = [metric(np.repeat(truth, row), np.repeat(score, row, axis=0)) for row in weights]
        np.testing.assert_allclose(metric(truth, score, weights), expected, atol=1e-12)


def test_two_columns_and_one_score_are_the_same_question() -> None:
    rng = np.random.default_rng(2)
    truth, score = rng.integers(0, 2, 50), rng.random(50)
    for name, metric in CLASSIFICATION.items():
        assert metric(truth, score) == pytest.approx(metric(truth, np.stack([1 - score, score], 1))), name


def test_a_class_without_cases_is_left_out_not_counted_as_half() -> None:
    truth = np.array([0, 0, 1, 1])
    score = np.array([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1]])
    assert auc(truth, score) == 1.0
    assert average_precision(truth, score) == 1.0
    assert balanced_accuracy(truth, score) == 1.0
    assert np.isnan(auc(np.zeros(4, int), score[:, :2]))


def test_refusals() -> None:
    truth, score = np.array([0, 1, 2]), np.full((3, 2), 0.5)
    with pytest.raises(ValueError, match=r"0\.\.2, expected 0\.\.1"):
        auc(truth, score)
    with pytest.raises(ValueError, match="do not belong together"):
        auc(truth[:2], score)
    with pytest.raises(ValueError, match="1 cases have a score that is not finite"):
        auc(np.array([0, 1]), np.array([0.1, np.nan]))
    with pytest.raises(ValueError, match="integer classes"):
        auc(np.array([0.0, 1.0]), np.array([0.1, 0.9]))
    with pytest.raises(ValueError, match="multi-label"):
        ece(np.array([[0, 1], [1, 1]]), np.full((2, 2), 0.5))
    with pytest.raises(ValueError, match="do not fit 2 cases"):
        auc(np.array([0, 1]), np.array([0.1, 0.9]), np.ones((4, 3)))
