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
    low, high = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
    span = (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    curved = low + span * ((x - low) / span).clamp(0, 1) ** per_sample(gamma, x)
    out = torch.where(per_sample(gamma == 1, x), x, curved)
    mean = out.mean(axes, keepdim=True)
    stretched = mean + per_sample(contrast, x) * (out - mean)
    return torch.where(per_sample(contrast == 1, x), out, stretched) + per_sample(brightness, x)


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
