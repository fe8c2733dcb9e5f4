"""Scores of frozen features against labels: neighbours, a linear classifier, label maps. Pure functions.

Nothing here is tuned on the validation part, so that scores compare along a run and between runs: 10
neighbours, one strength of regularisation (`STRENGTH`, the best of six decades for a random ViT on six
public datasets), no seeds. All scores count classes alike, so that chance is 1 / classes, and 0 for Dice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

STRENGTH = 100.0  # inverse of the L2 penalty, in scikit-learn's sense, for features of length about one
ITERATIONS = 100  # of L-BFGS


def knn_predict(train: Tensor, labels: Tensor, query: Tensor, *, k: int, classes: int) -> Tensor:
    """Majority vote of the k nearest by cosine; a tie goes to the class with the larger summed similarity.

    Args:
        train: float [n, E]; labels: int64 [n]; query: float [m, E].

    Returns:
        int64 [m].
    """
    similarity = torch.nn.functional.normalize(query, dim=1) @ torch.nn.functional.normalize(train, dim=1).T
    value, index = similarity.topk(min(k, len(train)), dim=1)
    votes = torch.zeros(len(query), classes, dtype=torch.float64, device=query.device)
    # One vote a neighbour; the small addition is below half a vote in sum and only breaks ties.
    votes.scatter_add_(1, labels[index], 1.0 + value.double() * 0.4 / k)
    return votes.argmax(dim=1)


@dataclass(frozen=True)
class Linear:
    """A fitted multinomial logistic regression on standardised features."""

    mean: Tensor  # [E]
    scale: Tensor  # [E], what standardised features are multiplied with
    weight: Tensor  # [E, K]
    bias: Tensor  # [K]

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [..., K] of features [..., E]."""
        return ((x.to(self.mean.dtype) - self.mean) * self.scale) @ self.weight + self.bias


def fit_linear(x: Tensor, target: Tensor, weight: Tensor | None = None) -> Linear:
    """Multinomial logistic regression by L-BFGS: convex, started at zero, hence without a seed.

    Minimises sum(weight · cross-entropy) + ‖W‖² / (2 · STRENGTH), the bias not penalised, on features that
    are standardised and divided by √E.

    Args:
        x: float [n, E]; computed in its dtype and on its device.
        target: float [n, K], share of each class in a row, e.g. one-hot.
        weight: float [n] of the rows; None: 1 each.
    """
    mean, deviation = x.mean(dim=0), x.std(dim=0, correction=0)
    scale = 1.0 / (deviation.clamp_min(1e-6 * deviation.max().clamp_min(1e-12)) * x.shape[1] ** 0.5)
    z, y = (x - mean) * scale, target.to(x.dtype)
    row = torch.ones(len(x), dtype=x.dtype, device=x.device) if weight is None else weight.to(x.dtype)
    w = torch.zeros(x.shape[1], y.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.zeros(y.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    search = torch.optim.LBFGS([w, bias], max_iter=ITERATIONS, tolerance_grad=1e-7, tolerance_change=1e-10,
                               line_search_fn="strong_wolfe")  # fmt: skip

    def loss() -> Tensor:
        search.zero_grad()
        entropy = torch.nn.functional.cross_entropy(z @ w + bias, y, reduction="none")
        value = (row * entropy).sum() / len(z) + w.square().sum() / (2 * STRENGTH * len(z))
        value.backward()
        return value

    with torch.enable_grad():
        search.step(loss)
    return Linear(mean, scale, w.detach(), bias.detach())


def linear_predict(train: Tensor, labels: Tensor, query: Tensor, *, classes: int) -> Tensor:
    """Classes int64 [m] of `query` by a logistic regression on `train`; arguments as in `knn_predict`.

    Rows are weighted so that all classes count alike.
    """
    hot = torch.nn.functional.one_hot(labels, classes).double()
    counts = hot.sum(dim=0)
    present = int((counts > 0).sum())
    weight = (len(labels) / (present * counts.clamp_min(1)))[labels]
    return fit_linear(train.double(), hot, weight)(query.double()).argmax(dim=1)


def balanced_accuracy(truth: Tensor, predicted: Tensor) -> float:
    """Mean recall over the classes that occur in `truth` (int64 [n] both)."""
    recalls = [float((predicted[truth == label] == label).double().mean()) for label in truth.unique()]
    return float(np.mean(recalls)) if recalls else float("nan")


def shares(labels: Tensor, grid: Sequence[int], classes: int) -> Tensor:
    """Share of each class in the patches of label maps: [B, *spatial] -> float32 [B, N, K].

    Args:
        labels: int64, -1 where it is not known; a patch without a known voxel has only zeros.
        grid: patches along each axis; must divide the spatial sizes.
    """
    split: list[int] = []
    for size, count in zip(labels.shape[1:], grid, strict=True):
        split += [count, size // count]
    axes = len(grid)
    order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2)]
    patches = labels.reshape(len(labels), *split).permute(order).reshape(len(labels), int(np.prod(grid)), -1)
    counts = torch.stack([(patches == label).sum(dim=-1) for label in range(classes)], dim=-1).float()
    return counts / counts.sum(dim=-1, keepdim=True).clamp_min(1)


def confusion(logits: Tensor, grid: Sequence[int], labels: Tensor) -> Tensor:
    """Voxels by true and predicted class, int64 [K, K], unknown ones left out.

    Args:
        logits: [B, N, K] of the patches in row-major order of `grid`; interpolated linearly to voxels.
        labels: int64 [B, *spatial], -1 where it is not known.
    """
    classes = logits.shape[-1]
    maps = logits.float().transpose(1, 2).reshape(len(logits), classes, *grid)
    mode = "bilinear" if len(grid) == 2 else "trilinear"
    table = torch.zeros(classes * classes, dtype=torch.int64, device=logits.device)
    for one, truth in zip(maps, labels, strict=True):  # one image at a time: volumes times classes are large
        smooth = torch.nn.functional.interpolate(one[None], size=tuple(truth.shape), mode=mode)
        pair = truth * classes + smooth[0].argmax(dim=0)
        table += torch.bincount(pair[truth >= 0], minlength=classes * classes)
    return table.reshape(classes, classes)


def mean_dice(table: Tensor) -> float:
    """Dice of all voxels together, averaged over the classes above 0 that occur; NaN where none does.

    Args:
        table: int64 [K, K] of `confusion`; class 0 is background.
    """
    table = table.double().cpu()
    truth, predicted, both = table.sum(dim=1), table.sum(dim=0), table.diagonal()
    dice = (2 * both / (truth + predicted).clamp_min(1))[1:][truth[1:] > 0]
    return float(dice.mean()) if len(dice) else float("nan")
