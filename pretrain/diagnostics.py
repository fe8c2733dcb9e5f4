"""What a matrix of features says about collapse, without labels.

Functions of features [B, E] alone; they run on the CPU in float64, since singular values of a collapsed
matrix drown in float32 noise on the device. A 2,048 × 768 matrix takes about a third of a second on one
core: once in many steps, not each.

No single number is to be trusted: a masked autoencoder may show a low RankMe and fine-tune best.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

COLLAPSED_STD = 0.01  # share of the deviation of isotropic features below which all samples look alike
COLLAPSED_RANK = 1.5  # effective dimensions below which one direction carries everything


def feature_std(features: Tensor) -> float:
    """Deviation over samples of the L2-normalised features, averaged over E and scaled by √E.

    1 for isotropic features, 0 when all samples have the same direction (SimSiam, arXiv 2011.10566,
    section 4.1). NaN with fewer than two samples.
    """
    x = features.detach().to("cpu", torch.float64)
    if x.shape[0] < 2:
        return math.nan
    unit = torch.nn.functional.normalize(x, dim=1)
    return float(unit.std(dim=0, correction=0).mean() * math.sqrt(x.shape[1]))


def rankme(features: Tensor, eps: float = 1e-7) -> float:
    """Effective rank: exp of the entropy of the normalised singular values (arXiv 2210.02885, equation 1).

    From 1 (one direction) to min(B, E); k for a matrix with k equal singular values. Features are taken as
    they are, not centred, as in the paper. 1 for an all-zero matrix, NaN where a feature is not finite.
    """
    x = features.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(x).all()):
        return math.nan
    values = torch.linalg.svdvals(x)
    total = values.sum()
    if total <= 0:
        return 1.0
    share = values / total + eps
    return max(1.0, float(torch.exp(-(share * share.log()).sum())))


def alpha_req(features: Tensor) -> float:
    """Decay exponent of the covariance spectrum: eigenvalue_i ∝ i^-alpha (α-ReQ, NeurIPS 2022).

    Least squares of log eigenvalue against log rank over the eigenvalues above rounding. Near 1 generalises
    best in the paper; far above 1 is a collapse to few directions, near 0 is noise. NaN with fewer than
    three eigenvalues.
    """
    x = features.detach().to("cpu", torch.float64)
    if x.shape[0] < 2 or not bool(torch.isfinite(x).all()):
        return math.nan
    values = torch.linalg.svdvals(x - x.mean(dim=0)).square() / (x.shape[0] - 1)
    values = values[values > values.max() * max(x.shape) * torch.finfo(torch.float64).eps]
    if values.numel() < 3:
        return math.nan
    log_rank = torch.log(torch.arange(1, values.numel() + 1, dtype=torch.float64))
    log_value = torch.log(values)
    centred = log_rank - log_rank.mean()
    return float(-(centred * (log_value - log_value.mean())).sum() / centred.square().sum())


def alarm(features: Tensor) -> str | None:
    """Name the collapse rule that fires on features [B, E], and what usually mends it; None: all is well.

    Features of an untrained network are nearly the same for all images: ask after the warm-up.
    """
    if not bool(torch.isfinite(features).all()):
        return "features are not finite: lower optim.base_lr or train in bf16/float32 instead of float16"
    deviation = feature_std(features)
    if deviation < COLLAPSED_STD:
        return (
            f"feature_std {deviation:.3f} < {COLLAPSED_STD}: all images get nearly the same features; "
            "lower optim.base_lr, lengthen the warm-up, and look at the panels for blank inputs"
        )
    centred = features.detach().float() - features.detach().float().mean(dim=0)
    rank = rankme(centred)
    if features.shape[0] > 8 and rank < COLLAPSED_RANK:
        return (
            f"rankme {rank:.2f} < {COLLAPSED_RANK}: one direction carries everything; "
            "lower optim.base_lr or optim.weight_decay, and check that the images differ"
        )
    return None
