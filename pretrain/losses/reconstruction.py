"""Reconstruction losses over patches, in float32 whatever the precision of the network.

A loss is the mean over the hidden pixels of an image that count, then over the images. So each image has the
same weight however much of it is hidden or empty, and the mean over the rows of a rank is all that ranks.py
asks for: nothing is summed over the ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def normalise_patches(patches: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """Give each patch mean 0 and variance 1 over its pixels and channels (arXiv 2111.06377, section 4).

    Args:
        patches: [B, N, P].
        eps: added to the variance; an even patch (air) becomes 0.

    Returns:
        (normalised [B, N, P], mean [B, N, 1], deviation [B, N, 1]), float32.
    """
    patches = patches.float()
    mean = patches.mean(dim=-1, keepdim=True)
    deviation = torch.sqrt(patches.var(dim=-1, keepdim=True) + eps)
    return (patches - mean) / deviation, mean, deviation


def masked_mse(predicted: Tensor, target: Tensor, hidden: Tensor, counts: Tensor | None = None) -> Tensor:
    """Mean squared error over hidden patches only.

    Args:
        predicted, target: [B, N, P].
        hidden: bool [B, N].
        counts: bool [B, N, pixels], P = pixels · C: pixels that count; None: all.

    Returns:
        Scalar float32; an image in which nothing counts adds 0.
    """
    return _masked_mean((predicted.float() - target.float()).square(), hidden, counts)


def masked_l1(predicted: Tensor, target: Tensor, hidden: Tensor, counts: Tensor | None = None) -> Tensor:
    """`masked_mse` with the absolute difference (SimMIM, arXiv 2111.09886, section 3.4)."""
    return _masked_mean((predicted.float() - target.float()).abs(), hidden, counts)


def _masked_mean(error: Tensor, hidden: Tensor, counts: Tensor | None) -> Tensor:
    weight = hidden.to(error.dtype)
    if counts is None:
        error = error.mean(dim=-1)
    else:
        seen = counts.to(error.dtype)
        error = (error.unflatten(-1, (seen.shape[-1], -1)).mean(dim=-1) * seen).sum(dim=-1)
        number = seen.sum(dim=-1)
        error, weight = error / number.clamp_min(1.0), weight * number
    return ((error * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1.0)).mean()
