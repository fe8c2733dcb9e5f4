"""Intervals against closed forms and SciPy, coverage on clustered data, Holm by hand, Decathlon ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from medloom.finetune.metrics import CLASSIFICATION
from medloom.finetune.ranking import Cell, rank_methods, significance_scores
from medloom.finetune.statistics import (
    bootstrap_mean,
    bootstrap_metric,
    holm,
    paired_difference,
    paired_metric_difference,
    patient_means,
    summarise,
    wilcoxon,
)
from scipy import stats


def test_interval_of_independent_cases_equals_the_standard_error() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    interval = bootstrap_mean(values, np.arange(400))
    error = values.std() / math.sqrt(400)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.02)


def test_interval_equals_scipy_bootstrap() -> None:
    values = np.random.default_rng(1).gamma(2.0, 1.0, 60)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    interval = bootstrap_mean(values, np.arange(60))
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.03)


def test_a_draw_equals_repeating_the_patients_scans() -> None:
    """With two patients, the bootstrap has exactly three outcomes with shares 1/4, 1/2, 1/4."""
    values, clusters = np.array([0.0, 1.0, 1.0, 10.0]), ["a", "b", "b", "b"]
    interval = bootstrap_mean(values, clusters, level=0.999)
    assert interval.mean == 3.0
    assert (interval.low, interval.high) == (0.0, 4.0)
    assert bootstrap_mean(values, clusters, level=0.4).low == 3.0


def test_clusters_keep_their_promise_where_naive_cases_fail() -> None:
    """40 patients with four alike scans each: nearly 95 % coverage by patient, far less by scan."""
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(40), 4)
    held = np.zeros(2)
    for trial in range(300):
        values = np.repeat(rng.standard_normal(40), 4) + 0.3 * rng.standard_normal(160)
        for column, names in enumerate((clusters, np.arange(160))):
            interval = bootstrap_mean(values, names, n=500, seed=trial)
            held[column] += interval.low <= 0.0 <= interval.high
    assert 0.90 <= held[0] / 300 <= 0.98
    assert held[1] / 300 < 0.8


def test_order_of_rows_and_names_of_patients_do_not_matter() -> None:
    rng = np.random.default_rng(3)
    values, clusters = rng.random(50), rng.integers(0, 12, 50)
    order = rng.permutation(50)
    first = bootstrap_mean(values, clusters, n=300)
    second = bootstrap_mean(values[order], [f"p{c:02d}" for c in clusters[order]], n=300)
    assert (first.low, first.high) == pytest.approx((second.low, second.high), rel=1e-12)
    assert first == bootstrap_mean(values, clusters, n=300)
    assert first != bootstrap_mean(values, clusters, n=300, seed=1)


def test_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values, clusters = np.random.default_rng(4).random(30), np.arange(30)
    whole = bootstrap_mean(values, clusters, n=500)
    monkeypatch.setattr("medloom.finetune.statistics._CHUNK", 30 * 7)
    assert bootstrap_mean(values, clusters, n=500) == whole


def test_structures_are_averaged_after_cases() -> None:
    """Structure means 1 and 4 give 2.5, though there are more cases of the first."""
    values = np.array([[1.0, 4.0], [1.0, np.nan], [1.0, np.nan]])
    assert bootstrap_mean(values, ["a", "b", "c"]).mean == 2.5


def test_summary_counts_used_excluded_and_replaced() -> None:
    summary = summarise(
        np.array([0.5, np.nan, 0.0, 0.7]), ["ok", "excluded", "replaced", "ok"], ["a", "b", "c", "c"], n=100
    )
    assert (summary.n, summary.patients, summary.excluded, summary.replaced) == (3, 2, 1, 1)
    assert summary.mean == pytest.approx(0.4)
    with pytest.raises(ValueError, match="exactly where its status"):
        summarise(np.array([0.5, np.nan]), ["ok", "ok"], ["a", "b"])


def test_one_patient_has_a_mean_and_no_interval() -> None:
    interval = bootstrap_mean(np.array([0.5, 0.7]), ["a", "a"])
    assert interval.mean == pytest.approx(0.6)
    assert math.isnan(interval.low) and math.isnan(interval.high)
    # A second patient whose only value is excluded does not make an interval either.
    assert math.isnan(bootstrap_mean(np.array([0.5, np.nan]), ["a", "b"]).low)
    assert math.isnan(bootstrap_mean(np.array([np.nan, np.nan]), ["a", "b"]).mean)


@pytest.mark.parametrize("name", ["auc", "balanced_accuracy", "brier"])
def test_metric_draws_equal_the_metric_of_repeated_cases(name: str) -> None:
    """Against a plain loop that draws patients and repeats their rows: same generator, same interval."""
    rng = np.random.default_rng(5)
    truth, clusters = rng.integers(0, 2, 60), np.sort(rng.integers(0, 25, 60))
    score = np.clip(0.35 * truth + rng.random(60) * 0.6, 0, 1)
    names = np.unique(clusters)
    rows, values = np.random.default_rng(0).integers(len(names), size=(300, len(names))), []
    for drawn in rows:
        picked = np.concatenate([np.flatnonzero(clusters == names[i]) for i in drawn])
        values.append(CLASSIFICATION[name](truth[picked], score[picked]))
    interval = bootstrap_metric(CLASSIFICATION[name], truth, score, clusters, n=300, seed=0)
    assert (interval.low, interval.high) == pytest.approx(
        tuple(np.quantile(values, [0.025, 0.975])), abs=1e-9
    )
    assert interval.mean == CLASSIFICATION[name](truth, score)


def test_paired_difference_is_narrower_than_the_difference_of_intervals() -> None:
    rng = np.random.default_rng(6)
    hardness = rng.random(30)
    a, b = hardness + 0.05 + 0.01 * rng.standard_normal(30), hardness
    paired = paired_difference(a, b, np.arange(30))
    alone = bootstrap_mean(a, np.arange(30))
    assert paired.difference == pytest.approx((a - b).mean())
    assert paired.low > 0.04 and paired.high < 0.06
    assert paired.p == pytest.approx(stats.wilcoxon(a - b).pvalue)
    assert alone.high - alone.low > 10 * (paired.high - paired.low)


def test_paired_difference_tests_patients_not_scans() -> None:
    """Four scans a patient: the p-value is that of 10 patients, whatever the number of scans."""
    rng = np.random.default_rng(7)
    gaps = rng.normal(0.02, 0.05, 10)
    one = paired_difference(gaps, np.zeros(10), np.arange(10))
    four = paired_difference(np.repeat(gaps, 4), np.zeros(40), np.repeat(np.arange(10), 4))
    assert (one.p, one.patients) == pytest.approx((four.p, four.patients))
    assert (one.n, four.n) == (10, 40)
    assert (one.low, one.high) == pytest.approx((four.low, four.high))


def test_paired_difference_leaves_out_cases_excluded_on_either_side() -> None:
    result = paired_difference(
        np.array([1.0, np.nan, 3.0, 5.0]), np.array([0.0, 1.0, np.nan, 2.0]), ["a", "b", "c", "d"]
    )
    assert (result.difference, result.n, result.patients) == (2.0, 2, 2)


def test_paired_difference_averages_structures_after_cases() -> None:
    """Gaps of 1 in three cases of one structure and of 4 in one case of the other: 2.5, tested by patient."""
    a = np.array([[1.0, 4.0], [1.0, np.nan], [1.0, np.nan], [np.nan, np.nan]])
    result = paired_difference(a, np.zeros((4, 2)), ["a", "b", "c", "d"], n=500)
    assert (result.difference, result.n, result.patients) == (2.5, 3, 3)
    assert result.p == wilcoxon(np.array([2.5, 1.0, 1.0]))


def test_equal_arms_have_no_difference() -> None:
    values = np.random.default_rng(8).random(12)
    same = paired_difference(values, values + 1e-16, np.arange(12))
    assert (same.difference, same.p) == pytest.approx((0.0, 1.0))
    truth = np.arange(12) % 2
    same = paired_metric_difference(CLASSIFICATION["auc"], truth, values, values, np.arange(12), n=200)
    assert (same.difference, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)


def test_paired_metric_difference_finds_a_better_classifier_and_is_antisymmetric() -> None:
    rng = np.random.default_rng(9)
    truth = np.arange(120) % 2
    good, poor = truth + rng.normal(0, 0.6, 120), truth + rng.normal(0, 2.5, 120)
    good, poor = (1 / (1 + np.exp(-x)) for x in (good, poor))
    ahead = paired_metric_difference(CLASSIFICATION["auc"], truth, good, poor, np.arange(120), n=2000)
    behind = paired_metric_difference(CLASSIFICATION["auc"], truth, poor, good, np.arange(120), n=2000)
    assert ahead.low > 0 and ahead.p <= 0.01
    assert (behind.difference, behind.low, behind.high) == pytest.approx(
        (-ahead.difference, -ahead.high, -ahead.low)
    )


def test_wilcoxon_by_hand() -> None:
    """Differences +1, +2, +3, -4: negative rank sum 4; 7 of 16 sign patterns give 4 or less."""
    assert wilcoxon(np.array([1.0, 2.0, 3.0, -4.0])) == pytest.approx(2 * 7 / 16)
    assert wilcoxon(np.array([1.0, 2.0, 3.0, 4.0]), alternative="greater") == pytest.approx(1 / 16)
    assert wilcoxon(np.zeros(5)) == 1.0


def test_holm_by_hand() -> None:
    """p = .01 .04 .03 .005, four tests: .005x4, .01x3, .03x2, then .04x1 raised to its predecessor's .06."""
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1.0, 1.0])
    np.testing.assert_allclose(holm([0.02, np.nan, 0.03]), [0.04, np.nan, 0.04])
    assert holm([]).shape == (0,)


def test_patient_means() -> None:
    np.testing.assert_allclose(patient_means(np.array([1.0, 3.0, 5.0]), ["b", "b", "a"]), [5.0, 2.0])


def test_refusals() -> None:
    with pytest.raises(ValueError, match="3 cases but 2 patient names"):
        bootstrap_mean(np.zeros(3), ["a", "b"])
    with pytest.raises(ValueError, match="infinite"):
        bootstrap_mean(np.array([1.0, np.inf]), ["a", "b"])
    with pytest.raises(ValueError, match="no cases"):
        bootstrap_mean(np.zeros(0), [])
    with pytest.raises(ValueError, match="differ in shape"):
        paired_difference(np.zeros(3), np.zeros(2), ["a", "b", "c"])


def cell(task: str, metric: str, *, higher: bool, seed: int, missing: str | None = None) -> Cell:
    """Three methods on 30 patients: `best` clearly ahead, `same` and `twin` equal up to noise."""
    rng = np.random.default_rng(seed)
    base, sign = rng.random(30), 1 if higher else -1
    values: dict[str, np.ndarray | None] = {
        "best": base + sign * 0.2,
        "same": base + 0.01 * rng.standard_normal(30),
        "twin": base + 0.01 * rng.standard_normal(30),
    }
    if missing:
        values[missing] = None
    return Cell(task, "organ", metric, higher, values, [f"p{i}" for i in range(30)])


@pytest.mark.parametrize("higher", [True, False])
def test_significance_scores(higher: bool) -> None:
    assert significance_scores(cell("t", "m", higher=higher, seed=0)) == {"best": 2, "same": 0, "twin": 0}


def test_ranks_tie_where_nothing_is_significant_and_missing_is_last() -> None:
    ranks = rank_methods([cell("t", "dice", higher=True, seed=0)])
    assert [(r.method, r.rank) for r in ranks] == [("best", 1.0), ("same", 2.5), ("twin", 2.5)]
    assert ranks[0].low == ranks[0].high == 1.0
    ranks = rank_methods([cell("t", "dice", higher=True, seed=0, missing="best")])
    assert [(r.method, r.rank) for r in ranks] == [("same", 1.5), ("twin", 1.5), ("best", 3.0)]


def test_ranks_average_within_tasks_first() -> None:
    """Task t has two metrics, u one: best ranks (1 + 3)/2 = 2 in t and 1 in u, so 1.5, not (1 + 3 + 1)/3."""
    cells = [
        cell("t", "dice", higher=True, seed=0),
        cell("t", "nsd", higher=True, seed=1, missing="best"),
        cell("u", "dice", higher=True, seed=2),
    ]
    ranks = {rank.method: rank.rank for rank in rank_methods(cells)}
    assert ranks["best"] == 1.5


def test_ranking_refuses_cells_with_other_methods() -> None:
    with pytest.raises(ValueError, match="same methods"):
        rank_methods([])
