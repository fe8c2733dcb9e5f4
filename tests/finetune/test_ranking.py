"""Critical differences against Demsar's table and by hand; how firm ranks are; what the diagrams say."""

from __future__ import annotations

import re

import numpy as np
import pytest
from medloom.finetune.charts_ranking import critical_difference_diagram, rank_stability_chart
from medloom.finetune.critical_difference import critical_difference, nemenyi_distance, task_scores
from medloom.finetune.ranking import Cell, rank_methods, rank_stability
from scipy import stats

# q of Demsar 2006, table 5(a), alpha 0.05, for 2 .. 10 methods.
TABLE = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]


@pytest.mark.parametrize(("methods", "q"), list(enumerate(TABLE, start=2)))
def test_distances_equal_the_published_table(methods: int, q: float) -> None:
    expected = q * np.sqrt(methods * (methods + 1) / (6 * 14))
    assert nemenyi_distance(methods, 14) == pytest.approx(expected, abs=6e-4)


def test_the_example_of_demsar() -> None:
    """Section 3.2.4: four classifiers on 14 sets have a critical distance of 1.25, at 0.10 of 1.12."""
    assert nemenyi_distance(4, 14) == pytest.approx(1.25, abs=0.005)
    assert nemenyi_distance(4, 14, alpha=0.10) == pytest.approx(1.12, abs=0.005)


def scores(gaps: list[float], tasks: int, noise: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random((tasks, 1)) + np.array(gaps) + noise * rng.standard_normal((tasks, len(gaps)))


@pytest.mark.parametrize("test", ["nemenyi", "wilcoxon"])
def test_cliques_join_what_is_not_told_apart(test) -> None:
    found = critical_difference(["c", "a", "b", "d"], scores([0.4, 1.0, 1.0, 0.0], 30, 0.02), test=test)
    assert found.methods[2:] == ("c", "d")
    assert {found.methods[0], found.methods[1]} == {"a", "b"}
    assert found.cliques == ((0, 1),)
    assert found.friedman_p < 1e-6
    assert sum(found.ranks) == pytest.approx(1 + 2 + 3 + 4)


def test_five_tasks_cannot_tell_by_wilcoxon() -> None:
    found = critical_difference(["a", "b", "c"], scores([2, 1, 0], 5, 0.0), test="wilcoxon")
    assert found.ranks == (1.0, 2.0, 3.0)
    assert found.cliques == ((0, 2),)
    for tasks, cliques in ((6, ((0, 2),)), (8, ())):
        found = critical_difference(["a", "b", "c"], scores([2, 1, 0], tasks, 0.0), test="wilcoxon")
        assert found.cliques == cliques


def test_cliques_are_maximal_and_may_overlap() -> None:
    table = np.array([[4, 3, 2, 1], [3, 4, 2, 1], [4, 2, 3, 1], [4, 3, 1, 2]], float)
    found = critical_difference(list("abcd"), np.tile(table, (4, 1)))
    assert found.distance == pytest.approx(nemenyi_distance(4, 16))
    for first, last in found.cliques:
        assert found.ranks[last] - found.ranks[first] < found.distance
        if last + 1 < 4:
            assert found.ranks[last + 1] - found.ranks[first] >= found.distance
    assert len(set(found.cliques)) == len(found.cliques) >= 1


def test_friedman_equals_scipy_and_ties_are_no_difference() -> None:
    values = scores([0.1, 0.0, 0.0], 12, 0.1)
    assert critical_difference(list("abc"), values).friedman_p == pytest.approx(
        stats.friedmanchisquare(*values.T).pvalue
    )
    same = critical_difference(list("abc"), np.ones((4, 3)))
    assert (same.friedman_p, same.ranks, same.cliques) == (1.0, (2.0, 2.0, 2.0), ((0, 2),))


def cell(task: str, metric: str, values: dict[str, list[float] | None], *, higher: bool = True) -> Cell:
    arrays = {name: None if row is None else np.array(row) for name, row in values.items()}
    return Cell(task, "", metric, higher, arrays, [f"p{i}" for i in range(len(values["a"] or []))])


def test_scores_of_tasks_average_ranks_over_metrics() -> None:
    cells = [
        cell("t", "dice", {"a": [0.9, 0.8], "b": [0.5, 0.6], "c": None}),
        cell("t", "hd95", {"a": [9.0, 8.0], "b": [2.0, 3.0], "c": [1.0, 1.0]}, higher=False),
        cell("u", "dice", {"a": [0.9, np.nan], "b": [0.7, 0.95], "c": [0.1, 0.2]}),
    ]
    methods, table = task_scores(cells)
    assert methods == ["a", "b", "c"]
    np.testing.assert_array_equal(table, [[-(1 + 3) / 2, -2, -(3 + 1) / 2], [-1, -2, -3]])


def cells(noise: float) -> list[Cell]:
    rng = np.random.default_rng(3)
    base = rng.random(25)
    return [
        cell(task, "dice", {
            "a": list(base + 0.2 + noise * rng.standard_normal(25)), "b": list(base),
            "c": list(base - 0.2 + noise * rng.standard_normal(25)),
        })
        for task in ("t", "u")
    ]  # fmt: skip


def test_a_clear_order_is_firm_and_an_unclear_one_is_not() -> None:
    firm = rank_stability(cells(0.01), draws=60)
    assert list(firm.shares) == ["a", "b", "c"]
    assert firm.tau == 1.0
    assert [firm.shares[m][i] for i, m in enumerate("abc")] == [1.0, 1.0, 1.0]
    loose = rank_stability(cells(0.9), draws=60)
    assert loose.tau < 0.9
    for held in loose.shares.values():
        assert sum(held) == pytest.approx(1.0)
    for rank in range(3):
        assert sum(held[rank] for held in loose.shares.values()) == pytest.approx(1.0)
    assert list(loose.shares) == [r.method for r in rank_methods(cells(0.9), draws=5)]


def test_diagrams_show_ranks_groups_and_shares() -> None:
    found = critical_difference(["alpha", "beta <b>", "gamma"], scores([2, 1.9, 0], 12, 0.2))
    page = critical_difference_diagram(found, label="tasks")
    assert "<b>" not in page and "beta &lt;b&gt;" in page
    assert page.count('class="clique"') == len(found.cliques)
    assert page.count('class="leader"') == 3
    assert "CD" in page
    for name, x in zip(found.methods, re.findall(r'leader" points="([\d.]+),', page), strict=True):
        assert name and 0 < float(x) < 540
    held = rank_stability(cells(0.9), draws=40)
    chart = rank_stability_chart(held.shares, label="ranks")
    assert chart.count("<circle") == sum(share > 0 for row in held.shares.values() for share in row)
    assert rank_stability_chart({}, label="none") == ""


def test_refusals() -> None:
    with pytest.raises(ValueError, match="2 or more"):
        critical_difference(["a"], np.ones((3, 1)))
    with pytest.raises(ValueError, match="not finite"):
        critical_difference(["a", "b"], np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match="nemenyi or wilcoxon"):
        critical_difference(["a", "b"], np.ones((2, 2)), test="t")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="same methods"):
        task_scores([])
