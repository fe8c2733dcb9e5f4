"""Reconstruction losses over patches, in float32 whatever the precision of the network."""

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


def masked_mse(predicted: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Mean squared error over hidden patches only.

    Args:
        predicted, target: [B, N, P].
        hidden: bool [B, N].

    Returns:
        Scalar float32; 0 when nothing is hidden.
    """
    per_patch = (predicted.float() - target.float()).square().mean(dim=-1)
    weight = hidden.to(per_patch.dtype)
    return (per_patch * weight).sum() / weight.sum().clamp_min(1.0)
