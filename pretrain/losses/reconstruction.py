"""Reconstruction losses over patches, in float32 whatever the precision of the network.

A loss is the mean over the hidden pixels of an image that count, then over the images. So each image has the
same weight however much of it is hidden or empty, and the mean over the rows of a rank is all that ranks.py
asks for: nothing is summed over the ranks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

EPS = 1e-6  # added to the variance of a patch; an even one (air) becomes 0


def normalise_patches(patches: Tensor) -> Tensor:
    """Give each patch mean 0 and variance 1 over its pixels and channels (arXiv 2111.06377, section 4).

    Args:
        patches: [B, N, P].

    Returns:
        [B, N, P], float32: (patches - mean) / deviation of `patch_statistics`.
    """
    # torch's layer norm, one pass where the formula takes five, divides by P what is divided by P - 1 here.
    pixels = patches.shape[-1]
    share = (pixels - 1) / pixels
    scale = torch.full((pixels,), math.sqrt(share), device=patches.device)
    return functional.layer_norm(patches.float(), (pixels,), weight=scale, eps=EPS * share)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [B, N, 1], float32, of the pixels and channels of patches [B, N, P]."""
    patches = patches.float()
    return patches.mean(-1, keepdim=True), torch.sqrt(patches.var(-1, keepdim=True) + EPS)


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
    weight = (hidden.unsqueeze(-1) if counts is None else counts & hidden.unsqueeze(-1)).float()
    each = error.shape[-1] // weight.shape[-1]  # numbers that share a weight
    weight = weight / (len(error) * each * weight.sum(dim=(1, 2), keepdim=True).clamp_min(1.0))
    return (error.unflatten(-1, (-1, each)) * weight.unsqueeze(-1)).sum()
