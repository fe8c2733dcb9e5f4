"""Schedules against their closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
from medloom.data.errors import ConfigError
from medloom.pretrain.schedules import RATES, cosine, linear, rate, warmup_cosine


def test_cosine_at_its_known_points() -> None:
    assert cosine(0, 100, 1.0, 0.2) == pytest.approx(1.0)
    assert cosine(50, 100, 1.0, 0.2) == pytest.approx(0.6)
    assert cosine(100, 100, 1.0, 0.2) == pytest.approx(0.2)
    assert cosine(25, 100, 1.0, 0.0) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert cosine(1000, 100, 1.0, 0.2) == pytest.approx(0.2)
    assert cosine(-5, 100, 0.992, 1.0) == pytest.approx(0.992)


def test_warmup_rises_linearly_and_the_first_step_learns() -> None:
    rates = [warmup_cosine(s, steps=100, warmup=10, peak=2.0, floor=0.1) for s in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (s + 1) for s in range(10)])
    assert rates[9] == rates[10] == pytest.approx(2.0)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert warmup_cosine(100, steps=100, warmup=10, peak=2.0, floor=0.1) == pytest.approx(0.1)
    assert warmup_cosine(55, steps=100, warmup=10, peak=2.0, floor=0.1) == pytest.approx(1.05)


def test_no_warmup_starts_at_the_peak_and_all_warmup_ends_there() -> None:
    assert warmup_cosine(0, steps=10, warmup=0, peak=1.0) == 1.0
    assert warmup_cosine(9, steps=10, warmup=10, peak=1.0) == pytest.approx(1.0)


@pytest.mark.parametrize("change", [{"warmup": 101}, {"warmup": -1}, {"floor": 3.0}])
def test_contradictions_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="warm-up"):
        warmup_cosine(0, **{"steps": 100, "warmup": 10, "peak": 2.0, "floor": 0.0, **change})  # type: ignore[arg-type]


def test_other_schedules_are_their_closed_forms() -> None:
    settings = {"steps": 110, "warmup": 10, "peak": 2.0, "floor": 0.5}
    for kind in RATES:
        assert rate(kind, 0, **settings) == pytest.approx(0.2)
        assert rate(kind, 9, **settings) == rate(kind, 10, **settings) == pytest.approx(2.0)
    assert rate("constant", 109, **settings) == 2.0
    assert rate("poly", 60, **settings) == pytest.approx(0.5 + 1.5 * 0.5**0.9)
    assert rate("poly", 110, **settings) == rate("cosine", 110, **settings) == pytest.approx(0.5)
    assert rate("cosine", 60, **settings) == pytest.approx(1.25)
    assert [linear(step, 10, 1.0, 3.0) for step in (-1, 0, 5, 10, 11)] == [1.0, 1.0, 2.0, 3.0, 3.0]
    with pytest.raises(ConfigError, match="did you mean poly"):
        rate("poli", 0, **settings)
