"""What matrices of features say about collapse, without labels.

Functions of features [B, E], or of views of the same images [V, B, E], on the CPU in float64: singular values
of a collapsed matrix drown in float32 noise on the device. Spectra are eigenvalues of the smaller Gram matrix
of at most `MOST_ROWS` samples, which cuts 2,048 × 768 from 180 ms of one core to 28: a row of metrics pays
for it once in `trainer.log_every` steps. What fires an alarm is in `alarms`.

No single number is to be trusted: a masked autoencoder may show a low RankMe and fine-tune best.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MOST_ROWS = 512  # samples whose spectrum is taken; RankMe of a run is bounded by it, as by the batch
LEAST_ROWS = 9  # samples below which a small rank of the centred features says nothing


def describe(features: Tensor, views: Tensor | None = None) -> dict[str, float]:
    """All diagnostics of a batch, as they stand in a row of metrics.jsonl.

    Args:
        features: [B, E], one row an image.
        views: [V, B, E] of true views of the same images, or None: then there is no `lidar`.

    Returns:
        feature_std, rankme, rank_centred (effective rank once the mean is taken out, which one offset common
        to all images would hide; NaN below `LEAST_ROWS` samples, which span few directions at best),
        alpha_req, and lidar where there are views.
    """
    x = _double(features)
    found = {
        "feature_std": feature_std(features),
        "rankme": rankme(features),
        "rank_centred": rankme(x - x.mean(dim=0)) if len(x) >= LEAST_ROWS else math.nan,
        "alpha_req": alpha_req(features),
    }
    if views is not None:
        found["lidar"] = lidar(views)
    return found


def feature_std(features: Tensor) -> float:
    """Deviation over samples of the L2-normalised features, averaged over E and scaled by √E.

    1 for isotropic features, 0 when all samples have the same direction (SimSiam, arXiv 2011.10566,
    section 4.1). NaN with fewer than two samples, or where a feature is not finite.
    """
    x = _double(features)
    if x.shape[0] < 2:
        return math.nan
    unit = torch.nn.functional.normalize(x, dim=1)
    return float(unit.std(dim=0, correction=0).mean() * math.sqrt(x.shape[1]))


def rankme(features: Tensor, eps: float = 1e-7) -> float:
    """Effective rank: exp of the entropy of the normalised singular values (arXiv 2210.02885, equation 1).

    From 1 (one direction) to min(B, E, MOST_ROWS); k for a matrix with k equal singular values. Features are
    taken as they are, not centred, as in the paper. 1 for an all-zero matrix, NaN where a feature is not
    finite or there is none.
    """
    x = _double(features)[:MOST_ROWS]
    if x.numel() == 0 or not bool(torch.isfinite(x).all()):
        return math.nan
    values = _eigenvalues(x).sqrt()
    total = values.sum()
    if total <= 0:
        return 1.0
    return max(1.0, _effective(values / total + eps))


def alpha_req(features: Tensor) -> float:
    """Decay exponent of the covariance spectrum: eigenvalue_i ∝ i^-alpha (α-ReQ, NeurIPS 2022).

    Least squares of log eigenvalue against log rank over the eigenvalues above rounding. Near 1 generalises
    best in the paper; far above 1 is a collapse to few directions, near 0 is noise. NaN with fewer than
    three eigenvalues.
    """
    x = _double(features)[:MOST_ROWS]
    if x.shape[0] < 2 or not bool(torch.isfinite(x).all()):
        return math.nan
    values = _eigenvalues(x - x.mean(dim=0)).flip(0) / (x.shape[0] - 1)
    values = values[values > values.max() * max(x.shape) * torch.finfo(torch.float64).eps]
    if values.numel() < 3:
        return math.nan
    log_rank = torch.log(torch.arange(1, values.numel() + 1, dtype=torch.float64))
    log_value = torch.log(values)
    centred = log_rank - log_rank.mean()
    return float(-(centred * (log_value - log_value.mean())).sum() / centred.square().sum())


def lidar(views: Tensor, delta: float = 1e-4, eps: float = 1e-7) -> float:
    """Effective rank of what tells images apart against what tells views of one image apart.

    LiDAR (arXiv 2312.04000, section 4): exp of the entropy of the eigenvalues of
    W^-1/2 B W^-1/2, with B the covariance of the means of images and W the mean covariance of the views of an
    image plus `delta` · identity. The groups are true ones: views of one image. From 1 to the smaller of
    E and images - 1. Eigenvalues are taken of the equivalent images × images matrix M^T W^-1 M, where
    B = M M^T. The paper wants the deviation of features to be of order one, as `delta` is absolute.

    Args:
        views: [V, B, E], V at least 2.

    Returns:
        1 where all image means are equal, NaN with one view, one image, or a feature that is not finite.
    """
    x = _double(views)[:, :MOST_ROWS]
    count, images, width = x.shape
    if count < 2 or images < 2 or not bool(torch.isfinite(x).all()):
        return math.nan
    mean = x.mean(dim=0)
    between = (mean - mean.mean(dim=0)).T / math.sqrt(images)  # M [E, B]
    inside = (x - mean).reshape(-1, width)
    within = inside.T @ inside / len(inside) + delta * torch.eye(width, dtype=torch.float64)
    values = torch.linalg.eigvalsh(between.T @ torch.cholesky_solve(between, torch.linalg.cholesky(within)))
    values = values.clamp_min(0)
    total = values.sum()
    if total <= 0:
        return 1.0
    return max(1.0, _effective(values / total + eps))


def _effective(share: Tensor) -> float:
    return float(torch.exp(-(share * share.log()).sum()))


def _eigenvalues(x: Tensor) -> Tensor:
    """Squared singular values of [n, E], ascending, min(n, E) of them, none below zero."""
    gram = x @ x.T if x.shape[0] < x.shape[1] else x.T @ x
    return torch.linalg.eigvalsh(gram).clamp_min(0)


def _double(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float64)
