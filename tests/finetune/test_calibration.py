"""Reliability, expected error and slope against scikit-learn and by hand; the section that shows them."""

from __future__ import annotations

import numpy as np
import pytest
from medloom.finetune.metrics import CLASSIFICATION
from medloom.finetune.metrics.calibration import decisions, expected_error, slope
from sklearn.linear_model import LogisticRegression


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def drawn(seed: int, n: int, classes: int, sharp: float) -> tuple[np.ndarray, np.ndarray]:
    """Truth drawn from known probabilities, and these made `sharp` times as extreme."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (n, classes))
    p = softmax(logits)
    truth = np.array([rng.choice(classes, p=row) for row in p])
    return truth, softmax(sharp * logits)


@pytest.mark.parametrize("classes", [2, 5])
def test_the_expected_error_of_one_class_an_image_is_that_of_the_classification_metrics(classes: int) -> None:
    truth, score = drawn(0, 120, classes, 2.0)
    assert expected_error(truth, score) == pytest.approx(CLASSIFICATION["ece"](truth, score), abs=1e-12)
    weights = np.random.default_rng(1).integers(0, 3, (7, 120)).astype(float)
    np.testing.assert_allclose(
        expected_error(truth, score, weights), CLASSIFICATION["ece"](truth, score, weights), atol=1e-12
    )


def test_unknown_findings_count_nowhere() -> None:
    rng = np.random.default_rng(2)
    truth, score = rng.integers(0, 2, (50, 3)), rng.random((50, 3))
    hidden = truth.copy()
    hidden[:20, 1] = -1
    other = score.copy()
    other[:20, 1] = rng.random(20)
    assert expected_error(hidden, score) == expected_error(hidden, other) != expected_error(truth, score)
    assert slope(hidden, score) == slope(hidden, other)
    assert len(decisions(hidden, score).right) == 130


def test_slope_of_two_classes_equals_a_logistic_regression_on_the_logit() -> None:
    for seed in range(5):
        truth, score = drawn(seed, 300, 2, 1.7)
        logit = np.log(score[:, 1] / score[:, 0])[:, None]
        fit = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logit, truth)
        assert slope(truth, score) == pytest.approx(float(fit.coef_[0, 0]), rel=1e-5)
        assert slope(truth, score[:, 1]) == pytest.approx(slope(truth, score), rel=1e-9)


@pytest.mark.parametrize("sharp", [0.5, 1.0, 2.0])
def test_slope_finds_how_much_too_extreme_probabilities_are(sharp: float) -> None:
    truth, score = drawn(3, 4000, 4, sharp)
    assert slope(truth, score) == pytest.approx(1 / sharp, rel=0.08)
    shifted = score * np.array([5.0, 1.0, 1.0, 0.2])  # what a loss with class weights does
    shifted /= shifted.sum(axis=1, keepdims=True)
    assert slope(truth, shifted) == pytest.approx(slope(truth, score), rel=1e-6)
    assert expected_error(truth, shifted) > expected_error(truth, score)


def test_slope_of_weights_equals_that_of_repeated_cases() -> None:
    truth, score = drawn(4, 80, 3, 1.5)
    weights = np.random.default_rng(5).integers(0, 4, (6, 80))
    values = slope(truth, score, weights)
    for row, value in zip(weights, np.asarray(values), strict=True):
        picked = np.repeat(np.arange(80), row)
        assert value == pytest.approx(slope(truth[picked], score[picked]), rel=1e-6)


def test_a_slope_without_an_end_is_not_given_one() -> None:
    truth = np.repeat([0, 1], 20)
    assert np.isnan(slope(truth, np.where(truth == 1, 0.9, 0.2)))
    assert np.isnan(slope(np.zeros(10, int), np.linspace(0.1, 0.9, 10)))
    assert np.isfinite(slope(np.r_[truth, 0], np.r_[np.where(truth == 1, 0.9, 0.2), 0.95]))


def test_refusal_of_shapes_that_do_not_belong_together() -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        decisions(np.zeros(3, int), np.zeros((4, 2)))
