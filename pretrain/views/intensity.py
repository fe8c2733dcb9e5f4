"""Grey scale: gamma, contrast and brightness of a sample as a whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .draw import between, draw, log_between, per_sample, sometimes


def intensity(x: Tensor, brightness: Tensor, contrast: Tensor, gamma: Tensor) -> Tensor:
    """Change the grey scale of each sample and channel, keeping what 0, 1 and 1 leave alone bit for bit.

    u = (x - min) / (max - min); x = min + (max - min) u^gamma; x = mean + contrast (x - mean) + brightness.

    Args:
        brightness, contrast, gamma: [B], one for all channels, so that grey stays grey.
    """
    axes = tuple(range(2, x.ndim))
    flat = x.flatten(2)
    low, high = (end.view(*x.shape[:2], *[1] * len(axes)) for end in torch.aminmax(flat, dim=2))
    span = (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    # exp(gamma log u) in place: a power with an exponent a sample is slow, and every pass over memory counts.
    u = (x - low).div_(span).log_().mul_(per_sample(gamma, x)).exp_()
    mean = u.mean(axes, keepdim=True)
    factor = span * per_sample(contrast, x)
    out = u.mul_(factor).add_(low + mean * (span - factor) + per_sample(brightness, x))
    return torch.where(per_sample((gamma == 1) & (contrast == 1) & (brightness == 0), x), x, out)


def random_intensity(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    brightness: float = 0.2,
    contrast: Sequence[float] = (0.8, 1.25),
    gamma: Sequence[float] = (0.7, 1.5),
    probability: float = 1.0,
    only: Tensor | None = None,
    stream: str = "intensity",
) -> Tensor:
    """`intensity`, brightness uniform in +- `brightness`, contrast and gamma log-uniform in their ranges."""
    draws = draw(x, seed, stream, positions, 4)
    return sometimes(
        x,
        draws.below(probability, only),
        intensity,
        between(draws.u[:, 1], (-brightness, brightness)),
        log_between(draws.u[:, 2], contrast),
        log_between(draws.u[:, 3], gamma),
    )
