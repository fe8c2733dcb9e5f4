"""Metrics of grades, numbers and rankings equal scikit-learn; weights are repeated cases."""

from __future__ import annotations

import numpy as np
import pytest
from medloom.finetune.metrics import CLASSIFICATION, METRICS, ORDINAL, REGRESSION, RETRIEVAL
from medloom.finetune.metrics.ordinal import median_grade
from medloom.finetune.metrics.retrieval import average_precision, precision, recall, retrieval_value
from scipy import stats
from sklearn import metrics as sk


def grades(seed: int, count: int):
    """Random (truth, probabilities) of 2 to 6 grades, some of them flat."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        k, n = int(rng.integers(2, 7)), int(rng.integers(10, 60))
        truth = np.r_[np.arange(k), rng.integers(0, k, n - k)]
        logits = rng.standard_normal((n, k)) + 2 * rng.random() * np.eye(k)[truth]
        yield truth, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_kappa_and_grade_error_equal_scikit_learn_of_the_median_grade() -> None:
    for truth, score in grades(0, 200):
        decided = np.array([next(k for k in range(len(p)) if p[: k + 1].sum() >= 0.5) for p in score])
        assert np.array_equal(median_grade(score), decided)
        assert ORDINAL["qwk"](truth, score) == pytest.approx(
            sk.cohen_kappa_score(truth, decided, weights="quadratic", labels=range(score.shape[1])), abs=1e-12
        )
        expected = sk.mean_absolute_error(truth, decided)
        assert ORDINAL["grade_error"](truth, score) == pytest.approx(expected, abs=1e-12)


def test_the_ranked_score_of_two_grades_is_briers_and_punishes_distance() -> None:
    for truth, score in grades(1, 40):
        if score.shape[1] == 2:
            expected = sk.brier_score_loss(truth, score[:, 1])
            assert ORDINAL["rps"](truth, score) == pytest.approx(expected, abs=1e-12)
    near, far = np.array([[0.0, 1, 0, 0]]), np.array([[0.0, 0, 0, 1]])
    assert ORDINAL["rps"](np.array([0]), near) == pytest.approx(1 / 3)
    assert ORDINAL["rps"](np.array([0]), far) == pytest.approx(1)


def test_kappa_of_one_grade_only_is_undefined() -> None:
    assert np.isnan(ORDINAL["qwk"](np.zeros(5, int), np.tile([0.9, 0.1], (5, 1))))


def test_errors_of_numbers_equal_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        truth = rng.normal(1e4 * rng.random(), 10, 40)
        score = 0.7 * truth + rng.normal(0, 5, 40)
        expected = {
            "mae": sk.mean_absolute_error(truth, score), "rmse": sk.root_mean_squared_error(truth, score),
            "r2": sk.r2_score(truth, score), "bias": float(np.mean(score - truth)),
            "pearson": stats.pearsonr(truth, score)[0],
            "calibration_slope": stats.linregress(score, truth)[0],
        }  # fmt: skip
        assert set(expected) == set(REGRESSION)
        for name, value in expected.items():
            assert REGRESSION[name](truth, score[:, None]) == pytest.approx(value, rel=1e-8, abs=1e-8), name


def test_a_constant_has_no_slope_and_no_explained_variance() -> None:
    same, spread = np.full(6, 3.0), np.arange(6.0)
    assert np.isnan(REGRESSION["r2"](same, spread))
    assert np.isnan(REGRESSION["calibration_slope"](spread, same))
    assert np.isnan(REGRESSION["pearson"](spread, same))
    assert REGRESSION["r2"](spread, np.full(6, spread.mean())) == pytest.approx(0)


@pytest.mark.parametrize("name", [*ORDINAL, *REGRESSION])
def test_weights_are_repeated_cases(name: str) -> None:
    rng = np.random.default_rng(3)
    for truth, score in grades(4, 20):
        if name in REGRESSION:
            score = score @ np.arange(score.shape[1]) + 50
        weights = rng.integers(0, 4, (5, len(truth)))
        weights[:, :2] += 1
        metric = (ORDINAL | REGRESSION)[name]
        expected = [metric(np.repeat(truth, w), np.repeat(score, w, axis=0)) for w in weights]
        assert metric(truth, score, weights) == pytest.approx(expected, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("name", ["auc", "average_precision", "accuracy", "balanced_accuracy", "brier"])
def test_a_finding_that_nobody_stated_is_as_if_the_image_were_not_there(name: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(30):
        truth = np.r_[np.zeros((1, 3), int), np.ones((1, 3), int), rng.integers(-1, 2, (38, 3))]
        score = np.round(rng.random(truth.shape), 1)
        columns = []
        for k in range(3):
            known = truth[:, k] >= 0
            columns.append(CLASSIFICATION[name](truth[known, k : k + 1], score[known, k : k + 1]))
        assert CLASSIFICATION[name](truth, score) == pytest.approx(np.mean(columns), abs=1e-12)
        weights = rng.integers(0, 3, (4, 40)) + 1
        expected = [CLASSIFICATION[name](np.repeat(truth, w, 0), np.repeat(score, w, 0)) for w in weights]
        assert CLASSIFICATION[name](truth, score, weights) == pytest.approx(expected, abs=1e-12)


def test_average_precision_of_the_whole_list_equals_scikit_learn() -> None:
    rng = np.random.default_rng(6)
    for _ in range(100):
        relevant = rng.random(30) < 0.3
        relevant[rng.integers(30)] = True
        total = int(relevant.sum())
        expected = sk.average_precision_score(relevant, -np.arange(30))
        assert average_precision(relevant, total, 30) == pytest.approx(expected, abs=1e-12)


def test_cut_off_metrics_of_a_list_worked_by_hand() -> None:
    relevant = np.array([False, True, True, False, True])
    assert average_precision(relevant, 4, 5) == pytest.approx((1 / 2 + 2 / 3 + 3 / 5) / 4)
    assert average_precision(relevant, 4, 3) == pytest.approx((1 / 2 + 2 / 3) / 3)
    assert [recall(relevant, 4, k) for k in (1, 2)] == [0, 1]
    assert precision(relevant, 4, 5) == pytest.approx(3 / 5)
    assert np.isnan(retrieval_value("map@10", np.zeros(5, bool), 0))


def test_every_metric_of_a_record_has_a_name_and_a_direction() -> None:
    assert {*ORDINAL, *REGRESSION, *RETRIEVAL} <= set(METRICS)
    assert not METRICS["calibration_slope"].compared and METRICS["mae"].compared
    assert METRICS["qwk"].higher_is_better and not METRICS["grade_error"].higher_is_better
