"""Scores of frozen features: against scikit-learn, and against counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from medloom.pretrain.probe_scores import (
    STRENGTH,
    balanced_accuracy,
    confusion,
    fit_linear,
    knn_predict,
    linear_predict,
    mean_dice,
    shares,
)
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier


def test_vote_agrees_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(200, 8, generator=generator)
    query = torch.randn(60, 8, generator=generator)
    labels = (train[:, 0] > 0).long() + (train[:, 1] > 0.5).long()
    unit = torch.nn.functional.normalize
    for k in (1, 5, 7):
        # Odd k and an identical metric: cosine order is the Euclidean order of unit vectors. Ties among three
        # classes are left out of the comparison, where scikit-learn takes the lowest label.
        oracle = KNeighborsClassifier(k).fit(unit(train).numpy(), labels.numpy())
        share = oracle.predict_proba(unit(query).numpy())
        clear = torch.from_numpy((share == share.max(1, keepdims=True)).sum(1) == 1)
        expected = torch.from_numpy(oracle.predict(unit(query).numpy()))
        found = knn_predict(train, labels, query, k=k, classes=3)
        assert torch.equal(found[clear], expected[clear])


def test_a_tie_goes_to_the_nearer_class() -> None:
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    query = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    assert knn_predict(train, torch.tensor([1, 0]), query, k=2, classes=2).tolist() == [1, 0]


def test_balanced_accuracy_ignores_class_sizes() -> None:
    truth = torch.tensor([0] * 90 + [1] * 10)
    assert balanced_accuracy(truth, torch.zeros(100, dtype=torch.long)) == 0.5


def clusters(rows: int, seed: int, spread: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (rows,), generator=generator)
    labels[: rows // 2] = 0  # one class is larger
    centres = torch.randn(3, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return centres[labels] * 3 + spread * torch.randn(
        rows, 6, generator=generator, dtype=torch.float64
    ), labels


def test_the_linear_classifier_is_scikit_learns() -> None:
    (x, labels), (query, _) = clusters(120, 0), clusters(80, 1)
    mean, scale = x.mean(0), 1 / (x.std(0, correction=0) * 6**0.5)
    oracle = LogisticRegression(C=STRENGTH, max_iter=5000, tol=1e-10).fit((x - mean) * scale, labels)
    fitted = fit_linear(x, torch.nn.functional.one_hot(labels).double())
    expected = oracle.predict_proba((query - mean) * scale)
    assert np.allclose(fitted(query).softmax(1).numpy(), expected, atol=2e-4)


def test_classes_count_alike_in_the_linear_probe() -> None:
    (x, labels), (query, truth) = clusters(120, 0, 4.0), clusters(300, 1, 4.0)
    mean, scale = x.mean(0), 1 / (x.std(0, correction=0) * 6**0.5)
    model = LogisticRegression(C=STRENGTH, max_iter=5000, class_weight="balanced")
    expected = torch.from_numpy(model.fit((x - mean) * scale, labels).predict((query - mean) * scale))
    found = linear_predict(x, labels, query, classes=4)  # a class without a sample is no harm
    assert (found == expected).double().mean() > 0.99
    assert balanced_accuracy(truth, found) > 0.5


def test_rows_may_be_shares_of_classes_and_constant_features_do_no_harm() -> None:
    x = torch.cat([torch.linspace(-1, 1, 50)[:, None], torch.full((50, 1), 3.0)], dim=1)
    part = torch.sigmoid(2 * x[:, 0])
    fitted = fit_linear(x, torch.stack([1 - part, part], dim=1))
    assert torch.allclose(fitted(x).softmax(1)[:, 1], part, atol=0.03)
    assert torch.isfinite(fitted.weight).all()


@pytest.mark.parametrize("grid", [(2, 3), (1, 3, 2)])
def test_shares_of_classes_are_counted_patch_by_patch(grid: tuple[int, ...]) -> None:
    sizes = [count * patch for count, patch in zip(grid, (4, 2, 3), strict=False)]
    labels = torch.randint(-1, 3, (2, *sizes), generator=torch.Generator().manual_seed(0))
    found = shares(labels, grid, 3)
    assert found.shape == (2, int(np.prod(grid)), 3)
    for number, place in enumerate(np.ndindex(*grid)):
        cut = [slice(p * (s // g), (p + 1) * (s // g)) for p, s, g in zip(place, sizes, grid, strict=True)]
        patch = labels[(slice(None), *cut)].flatten(1)
        for label in range(3):
            share = (patch == label).sum(1) / (patch >= 0).sum(1)
            assert torch.allclose(found[:, number, label], share)
    assert not shares(torch.full((1, *sizes), -1), grid, 3).any()


def test_confusion_and_dice_of_known_maps() -> None:
    truth = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, -1, -1], [2, 2, 0, 0]]])
    logits = torch.nn.functional.one_hot(truth.flatten(1).clamp_min(0), 3).float()
    table = confusion(logits, (4, 4), truth)
    assert table.tolist() == [[6, 0, 0], [0, 4, 0], [0, 0, 4]]
    assert mean_dice(table) == 1.0
    table = torch.tensor([[10, 2, 0], [3, 5, 0], [4, 0, 0]])
    assert mean_dice(table) == pytest.approx((2 * 5 / (8 + 7) + 0) / 2)
    assert mean_dice(torch.tensor([[5, 0, 3], [0, 1, 0], [0, 0, 0]])) == 1.0, "only classes that occur"


def test_scores_of_patches_are_interpolated_to_voxels() -> None:
    logits = torch.zeros(1, 2, 2)
    logits[0, 0, 0] = logits[0, 1, 1] = 1.0  # a column of two patches: first class 0, then class 1
    truth = torch.zeros(1, 8, 1, dtype=torch.int64)
    truth[0, 4:] = 1
    assert confusion(logits, (2, 1), truth).tolist() == [[4, 0], [0, 4]]
