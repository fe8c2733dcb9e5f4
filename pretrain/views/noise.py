"""Noise: Gaussian for everything, Rician for the magnitude images of MR (Gudbjartsson and Patz 1995)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...data.draws import normal_torch
from .draw import draw, on_device, per_sample, sometimes


def noise(x: Tensor, sigma: Tensor, field: Tensor) -> Tensor:
    """Add sigma [B] times a standard normal field [B, 1, ...], one for all channels: grey stays grey."""
    return x + per_sample(sigma, x) * field


def random_noise(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    sigma: float = 0.1,
    probability: float = 1.0,
    only: Tensor | None = None,
    stream: str = "noise",
) -> Tensor:
    """`noise` with sigma uniform in [0, `sigma`]."""
    draws = draw(x, seed, stream, positions, 2)

    def change(part: Tensor, sigmas: Tensor, at: Tensor) -> Tensor:
        return noise(part, sigmas, normal_field(part, seed, f"{stream}:field", at))

    return sometimes(
        x, draws.below(probability, only), change, draws.u[:, 1] * sigma, on_device(positions, x.device)
    )


def rician(x: Tensor, sigma: Tensor, black: Tensor, real: Tensor, imaginary: Tensor) -> Tensor:
    """x = black + |x - black + sigma (real + i imaginary)|: sigma 0 leaves the sample alone bit for bit.

    Args:
        sigma: [B], in units of x.
        black: [B], the value of no signal; what lies below it is reflected.
        real, imaginary: standard normal [B, 1, ...].
    """
    low, s = per_sample(black, x), per_sample(sigma, x)
    return torch.where(s == 0, x, low + torch.hypot(x - low + s * real, s * imaginary))


def random_rician(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    sigma: float = 0.1,
    probability: float = 1.0,
    black: Tensor | None = None,
    only: Tensor | None = None,
    stream: str = "rician",
) -> Tensor:
    """`rician` with sigma uniform in [0, `sigma`]; black [B], or None: the least of the sample."""
    draws = draw(x, seed, stream, positions, 2)
    if black is None:
        black = x.flatten(1).amin(dim=1)

    def change(part: Tensor, sigmas: Tensor, low: Tensor, at: Tensor) -> Tensor:
        real, imaginary = (normal_field(part, seed, f"{stream}:{name}", at) for name in ("real", "imaginary"))
        return rician(part, sigmas, low, real, imaginary)

    return sometimes(
        x, draws.below(probability, only), change, draws.u[:, 1] * sigma, black,
        on_device(positions, x.device),
    )  # fmt: skip


def normal_field(x: Tensor, seed: int, stream: str, positions: Tensor) -> Tensor:
    """Standard normal [B, 1, *spatial], keyed."""
    flat = normal_torch(seed, stream, positions, math.prod(x.shape[2:]), x.device)
    return flat.view(len(x), 1, *x.shape[2:])
