"""Gaussian blur, and its opposite, the unsharp mask."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .draw import between, draw, per_sample, sometimes
from .separable import along


def blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur, separable, sampled kernel cut at `radius` pixels, edges repeated.

    Args:
        sigma: [B] pixels, or [B, n] for each spatial axis; 0 leaves the sample alone bit for bit.
        radius: at least 3 times the largest sigma, or the kernel is visibly cut.
    """
    sigma = sigma[:, None].expand(-1, x.ndim - 2) if sigma.ndim == 1 else sigma
    return along(x, [_weights(sigma[:, a], radius, x.shape[a + 2]) for a in range(x.ndim - 2)])


def sharpen(x: Tensor, amount: Tensor, sigma: float = 1.0) -> Tensor:
    """Unsharp mask: x + amount (x - blur(x)), amount [B]; 0 leaves the sample alone bit for bit."""
    width = torch.full_like(amount, sigma)
    return x + per_sample(amount, x) * (x - blur(x, width, math.ceil(3 * sigma)))


def random_blur(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    sigma: float | Sequence[float] = 1.5,
    probability: float = 1.0,
    only: Tensor | None = None,
    stream: str = "blur",
) -> Tensor:
    """`blur` with sigma uniform in [low, high] pixels, or in [0, `sigma`] for a single number."""
    low, high = (0.0, sigma) if isinstance(sigma, int | float) else sigma
    draws = draw(x, seed, stream, positions, 2)
    radius = max(1, math.ceil(3 * high))
    return sometimes(
        x, draws.below(probability, only), lambda part, s: blur(part, s, radius),
        between(draws.u[:, 1], (low, high)),
    )  # fmt: skip


def random_sharpen(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    amount: float = 1.0,
    probability: float = 1.0,
    only: Tensor | None = None,
    stream: str = "sharpen",
) -> Tensor:
    """`sharpen` with an amount uniform in [0, `amount`], sigma 1 pixel."""
    draws = draw(x, seed, stream, positions, 2)
    return sometimes(x, draws.below(probability, only), sharpen, draws.u[:, 1] * amount)


def _weights(sigma: Tensor, radius: int, extent: int) -> Tensor:
    """[B, extent, extent]: the kernel around each voxel, what falls off the edge added to the edge."""
    at = torch.arange(-radius, radius + 1, device=sigma.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (at / sigma[:, None].clamp_min(1e-3)) ** 2)  # [B, 2 radius + 1]; a delta for 0
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    rows = torch.arange(extent, device=sigma.device)
    target = (rows[:, None] + offsets).clamp(0, extent - 1).expand(len(sigma), -1, -1)
    weights = torch.zeros(len(sigma), extent, extent, device=sigma.device)
    return weights.scatter_add_(2, target, kernel[:, None].expand(-1, extent, -1))
