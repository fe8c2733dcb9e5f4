"""Bias field of MR: the signal times a smooth field, as an uneven receive coil gives.

The logarithm of the field is a polynomial of the coordinates, as in Van Leemput et al. 1999 (and TorchIO's
RandomBiasField). It has no constant term: the brightness as a whole is the business of `intensity`.
"""

from __future__ import annotations

from itertools import product as combinations

import torch
from torch import Tensor

from .draw import between, draw, per_sample, sometimes
from .separable import product


def terms(n: int, order: int) -> list[tuple[int, ...]]:
    """Exponents of the monomials of degree 1 to `order` in n variables, in the order of the coefficients."""
    powers = combinations(range(order + 1), repeat=n)
    return [exponents for exponents in powers if 0 < sum(exponents) <= order]


def bias_field(x: Tensor, coefficients: Tensor, order: int, black: Tensor) -> Tensor:
    """x = black + (x - black) exp(sum_k coefficients_k prod_a t_a^k_a), t from -1 to 1 between the edges.

    Args:
        x: [B, C, *spatial].
        coefficients: [B, len(terms(n, order))]; all 0 leaves the sample alone bit for bit.
        black: [B], the value of no signal; one for all channels, so that grey stays grey.
    """
    n, spatial = x.ndim - 2, x.shape[2:]
    table = torch.zeros(len(x), *[order + 1] * n, device=x.device)
    for column, exponents in enumerate(terms(n, order)):
        table[(slice(None), *exponents)] = coefficients[:, column]
    for axis in reversed(range(n)):  # contract one axis of exponents after the other, the last first
        steps = torch.arange(spatial[axis], device=x.device, dtype=torch.float32)
        t = (2 * steps + 1) / spatial[axis] - 1
        basis = torch.stack([t**k for k in range(order + 1)])  # [order + 1, S]
        table = product(table.movedim(axis + 1, -1), basis).movedim(-1, axis + 1)
    low = per_sample(black, x)
    out = low + (x - low) * torch.exp(table).unsqueeze(1)
    return torch.where(per_sample((coefficients == 0).all(dim=1), x), x, out)


def random_bias_field(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    strength: float = 0.2,
    order: int = 3,
    probability: float = 1.0,
    black: Tensor | None = None,
    only: Tensor | None = None,
    stream: str = "bias",
) -> Tensor:
    """`bias_field`, coefficients uniform in +- `strength`; black [B], or None: the least of the sample."""
    count = len(terms(x.ndim - 2, order))
    draws = draw(x, seed, stream, positions, 1 + count)
    if black is None:
        black = x.flatten(1).amin(dim=1)
    return sometimes(
        x,
        draws.below(probability, only),
        lambda part, c, low: bias_field(part, c, order, low),
        between(draws.u[:, 1:], (-strength, strength)),
        black,
    )
