"""Coefficients against scikit-learn, published worked examples and closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from medloom.data.annotations.agreement import cohen_kappa, fleiss_kappa, interval_of, krippendorff_alpha
from medloom.data.annotations.icc import NAMES, icc
from medloom.data.annotations.marks import compare_marks, iou, match_boxes
from medloom.data.errors import ConfigError
from medloom.data.sample import Shape
from sklearn.metrics import cohen_kappa_score

NAN = math.nan


@pytest.mark.parametrize(
    ("ours", "theirs"), [("none", None), ("linear", "linear"), ("quadratic", "quadratic")]
)
@pytest.mark.parametrize("categories", [2, 3, 5])
def test_cohens_kappa_is_scikit_learns(ours, theirs, categories) -> None:
    generator = np.random.default_rng(categories)
    a = generator.integers(0, categories, 80)
    b = np.where(generator.random(80) < 0.6, a, generator.integers(0, categories, 80))
    expected = cohen_kappa_score(a, b, weights=theirs)
    assert cohen_kappa(a.astype(float), b.astype(float), ours) == pytest.approx(expected, abs=1e-12)
    gaps = np.where(generator.random(80) < 0.2, NAN, b.astype(float))
    known = ~np.isnan(gaps)
    expected = cohen_kappa_score(a[known], b[known], weights=theirs, labels=np.arange(categories))
    assert cohen_kappa(a.astype(float), gaps, ours) == pytest.approx(expected, abs=1e-12)


def test_weights_follow_the_codes_even_when_a_category_is_never_used() -> None:
    a, b = np.array([0.0, 0, 2, 2, 4]), np.array([0.0, 2, 2, 4, 4])
    expected = cohen_kappa_score(a.astype(int), b.astype(int), weights="linear", labels=[0, 1, 2, 3, 4])
    assert cohen_kappa(a, b, "linear") == pytest.approx(expected)


def test_fleiss_kappa_of_the_published_table() -> None:
    """Fleiss 1971's method on the table of 10 cases, 14 raters, 5 categories; kappa 0.210."""
    counts = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    ratings = np.array([[c for c, n in enumerate(row) for _ in range(n)] for row in counts], float)
    value, used = fleiss_kappa(ratings)
    assert value == pytest.approx(0.20993, abs=1e-5) and used == 10
    other = np.full((1, 14), NAN)
    other[0, :3] = 1
    assert fleiss_kappa(np.concatenate([ratings, other])) == (value, 10)


# Krippendorff 2011: 12 units, 4 observers, with gaps.
UNITS = np.array([
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]).T  # fmt: skip


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_krippendorffs_alpha_of_the_published_example(level, alpha) -> None:
    assert krippendorff_alpha(UNITS, level) == pytest.approx(alpha, abs=5e-4)


def test_alpha_by_the_definition_over_all_pairs() -> None:
    ratings = np.random.default_rng(0).integers(0, 4, (30, 3)).astype(float)
    ratings[::5, 1] = NAN
    units = [row[~np.isnan(row)] for row in ratings]
    everything = np.concatenate(units)

    def mean_square(values: np.ndarray) -> float:
        return float(np.mean([(a - b) ** 2 for a, b in itertools.permutations(values, 2)]))

    weights = [len(unit) for unit in units]
    observed = np.average([mean_square(unit) for unit in units], weights=weights)
    assert krippendorff_alpha(ratings, "interval") == pytest.approx(1 - observed / mean_square(everything))


def test_perfect_agreement_chance_and_what_is_not_defined() -> None:
    a = np.array([0.0, 1, 2, 1, 0])
    same = np.stack([a, a, a], 1)
    assert cohen_kappa(a, a) == fleiss_kappa(same)[0] == 1
    assert all(krippendorff_alpha(same, level) == 1 for level in ("nominal", "ordinal", "interval"))
    constant = np.zeros((5, 2))
    assert math.isnan(krippendorff_alpha(constant)) and math.isnan(fleiss_kappa(constant)[0])
    assert math.isnan(cohen_kappa(constant[:, 0], constant[:, 1]))
    assert math.isnan(krippendorff_alpha(np.array([[1.0, NAN]]))) and fleiss_kappa(np.array([[NAN]]))[1] == 0
    random = np.random.default_rng(1).integers(0, 3, (4000, 3)).astype(float)
    assert abs(krippendorff_alpha(random)) < 0.03 and abs(fleiss_kappa(random)[0]) < 0.03


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """40 datasets of 60 cases whose alpha is known from a large one: about 38 intervals hold it."""

    def dataset(cases: int, generator: np.random.Generator) -> np.ndarray:
        truth = generator.integers(0, 2, (cases, 1))
        return np.where(generator.random((cases, 3)) < 0.85, truth, 1 - truth).astype(float)

    true = krippendorff_alpha(dataset(200_000, np.random.default_rng(0)))
    hits = 0
    for seed in range(1, 41):
        low, high = interval_of(
            krippendorff_alpha, dataset(60, np.random.default_rng(seed)), np.random.default_rng(seed)
        )
        hits += low <= true <= high
    assert hits >= 34
    assert all(map(math.isnan, interval_of(krippendorff_alpha, np.ones((4, 2)), np.random.default_rng(0))))


# Shrout and Fleiss 1979, table 2: six subjects, four judges; values of table 4, intervals of R's psych::ICC.
JUDGES = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float
)
PUBLISHED = {
    "ICC(1,1)": (0.17, -0.133, 0.72), "ICC(2,1)": (0.29, 0.019, 0.76), "ICC(3,1)": (0.71, 0.342, 0.95),
    "ICC(1,k)": (0.44, -0.884, 0.91), "ICC(2,k)": (0.62, 0.071, 0.93), "ICC(3,k)": (0.91, 0.676, 0.99),
}  # fmt: skip


def test_all_six_icc_of_shrout_and_fleiss() -> None:
    found = {one.form: one for one in icc(JUDGES)}
    assert set(found) == set(NAMES) == set(PUBLISHED)
    for form, (value, low, high) in PUBLISHED.items():
        assert found[form].value == pytest.approx(value, abs=0.005), form
        assert found[form].low == pytest.approx(low, abs=0.0006), form
        assert found[form].high == pytest.approx(high, abs=0.006), form


def test_a_constant_difference_counts_for_agreement_and_not_for_consistency() -> None:
    values = np.random.default_rng(0).normal(50, 10, 200)
    found = {one.form: one.value for one in icc(np.stack([values, values + 10], 1))}
    assert found["ICC(3,1)"] == pytest.approx(1)
    # var 100 between cases, bias 10: 100 / (100 + 10 ** 2 / 2)
    assert found["ICC(2,1)"] == pytest.approx(values.var(ddof=1) / (values.var(ddof=1) + 50), rel=1e-2)
    assert {one.form: one.value for one in icc(np.stack([values, values], 1))}["ICC(2,1)"] == 1


def test_icc_needs_a_full_table() -> None:
    for table in (np.ones((1, 3)), np.ones((3, 1)), np.array([[1.0, NAN], [2, 3]])):
        with pytest.raises(ConfigError, match="needs 2 of each, without gaps"):
            icc(table)


def test_boxes_are_matched_by_overlap() -> None:
    def box(*corners: float) -> np.ndarray:
        return np.asarray(corners, float).reshape(2, 2)

    assert iou(box(0, 0, 4, 4), box(2, 0, 6, 4)) == pytest.approx(1 / 3)
    assert iou(box(0, 0, 1, 1), box(5, 5, 6, 6)) == 0
    found = match_boxes([box(0, 0, 10, 10), box(20, 20, 30, 30)], [box(20, 20, 30, 29), box(0, 0, 10, 8),
                                                                   box(50, 50, 60, 60)])  # fmt: skip
    assert found == {"boxes": [2, 3], "matched": 2, "iou": pytest.approx(0.85), "f1": pytest.approx(4 / 5)}
    assert match_boxes([], [box(0, 0, 1, 1)]) == {"boxes": [0, 1], "matched": 0, "iou": None, "f1": 0}


def test_landmarks_are_apart_in_millimetres() -> None:
    a = Shape(kind="point", label="apex", points=((1.0, 2.0),))
    b = Shape(kind="point", label="apex", points=((4.0, 4.0),))
    assert compare_marks([a], [b], (1.0, 2.0)) == [{"kind": "point", "label": "apex", "distance": 5.0}]
    assert compare_marks([a], [b, b], None) == []
