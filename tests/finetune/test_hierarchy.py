"""Two levels: runs widen an interval as much as they differ, pairing takes out what they share."""

from __future__ import annotations

import numpy as np
import pytest
from medloom.finetune.hierarchy import pooled, pooled_difference
from medloom.finetune.statistics import interval_of, mean_draws

PATIENTS = [f"p{n}" for n in range(40)]


def runs(rng: np.random.Generator, count: int, between: float) -> tuple[np.ndarray, np.ndarray]:
    """(scores [S], draws [S, R]) of runs on 40 patients; patients' own level is 1 wide, runs' `between`."""
    patients = rng.standard_normal(40)
    values = between * rng.standard_normal((count, 1)) + patients + 0.3 * rng.standard_normal((count, 40))
    return values.mean(axis=1), np.stack([mean_draws(row, PATIENTS, 400) for row in values])


def test_one_run_has_the_interval_of_its_patients() -> None:
    observed, draws = runs(np.random.default_rng(0), 1, 0.2)
    assert pooled(observed, draws) == interval_of(observed[0], draws[0])


def test_runs_that_agree_add_nothing_and_runs_that_differ_widen() -> None:
    observed, draws = runs(np.random.default_rng(1), 1, 0.0)
    same = pooled(np.repeat(observed, 5), np.repeat(draws, 5, axis=0))
    alone = interval_of(observed[0], draws[0])
    assert (same.low, same.high) == pytest.approx((alone.low, alone.high))
    shift = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    apart = pooled(observed + shift, draws + shift[:, None])
    assert apart.mean == pytest.approx(same.mean)
    spread = np.var(np.linspace(alone.low, alone.high, 3)[[0, 2]]) ** 0.5 / 1.96
    expected = np.sqrt(spread**2 + shift.var(ddof=1) / 5)  # of independent parts
    assert (apart.high - apart.low) / (2 * 1.96) == pytest.approx(expected, rel=0.1)


def test_coverage_where_runs_differ() -> None:
    """Runs as uncertain as the mean over patients: both levels are needed to hold the truth."""
    rng = np.random.default_rng(2)
    held = np.zeros(2)
    for trial in range(400):
        observed, draws = runs(rng, 5, between=0.16 * 5**0.5)
        both = pooled(observed, draws, seed=trial)
        patients = interval_of(float(observed.mean()), draws.mean(axis=0))
        held += [both.low <= 0 <= both.high, patients.low <= 0 <= patients.high]
    assert 0.87 <= held[0] / 400 <= 0.97, held / 400
    assert held[1] / 400 < 0.85, held / 400


def test_pairs_take_out_what_two_methods_share() -> None:
    rng = np.random.default_rng(3)
    a, draws_a = runs(rng, 5, 1.0)
    b, draws_b = a - 0.05, draws_a - 0.05
    found = pooled_difference(a, b, draws_a, draws_b)
    assert (found.mean, found.low, found.high) == pytest.approx((0.05, 0.05, 0.05))
    unpaired = pooled_difference(a, b[::-1], draws_a, draws_b[::-1])
    assert unpaired.high - unpaired.low > 0.5


def test_a_run_without_a_score_is_left_out_and_shapes_are_checked() -> None:
    observed, draws = runs(np.random.default_rng(4), 3, 0.5)
    observed[1] = np.nan
    assert pooled(observed, draws).mean == pytest.approx(observed[[0, 2]].mean())
    with pytest.raises(ValueError, match="one row a run"):
        pooled(observed, draws[:2])
    with pytest.raises(ValueError, match="no run"):
        pooled(np.array([np.nan]), draws[:1])
    with pytest.raises(ValueError, match="differ in shape"):
        pooled_difference(observed, observed[:2], draws, draws)
