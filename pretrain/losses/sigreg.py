"""SIGReg, LeJEPA's only guard against collapse: embeddings that look Gaussian along every direction do not.

A random direction is as good as any other, so a few hundred new ones a step replace a comparison of whole
densities. Along each, Epps and Pulley's test compares the characteristic function of the samples with that
of a standard normal: bounded, smooth and differentiable where tests on moments explode. Cost: linear in
rows, directions and knots; 640 embeddings of 128 on 1,024 directions are 11 million sines and cosines.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...data.draws import normal_torch
from .. import ranks
from .precision import exact, wide


def directions(
    seed: int, step: int, dim: int, count: int, device: torch.device | str | None = None
) -> Tensor:
    """Random unit vectors [dim, count] of optimiser step `step`: the same on every rank and on a resume."""
    at = torch.full((1,), step, dtype=torch.int64, device=device)
    drawn = normal_torch(seed, "sigreg", at, dim * count).view(dim, count)
    return drawn / drawn.norm(dim=0, keepdim=True)


def epps_pulley(x: Tensor, knots: int = 17, t_max: float = 3.0) -> Tensor:
    """Distance of each column from a standard normal (arXiv 2511.08544, section 4.2, algorithm 1).

    N ∫ |φ_x(t) - φ(t)|² φ(t) dt over [-t_max, t_max], φ(t) = exp(-t²/2), by the trapezoidal rule. The
    integrand is even, so that only t >= 0 is computed.

    Args:
        x: [..., B, S]: B samples on this rank of S variables; all ranks are one sample of N rows.
        knots: points in [0, t_max].

    Returns:
        [..., S], float32 or wider.
    """
    x = wide(x)
    t = torch.linspace(0, t_max, knots, device=x.device, dtype=x.dtype)
    normal = torch.exp(-t.square() / 2)
    angle = x.unsqueeze(-1) * t
    real, imaginary = ranks.mean(torch.stack([angle.cos().mean(-3), angle.sin().mean(-3)])).unbind()
    error = ((real - normal).square() + imaginary.square()) * normal
    return 2 * torch.trapezoid(error, t, dim=-1) * (ranks.world() * x.shape[-2])


def sigreg(embeddings: Tensor, toward: Tensor, knots: int = 17, t_max: float = 3.0) -> Tensor:
    """Mean of `epps_pulley` over views and directions.

    Args:
        embeddings: [V, B, D], each view by itself is compared with the normal distribution.
        toward: [D, S], unit vectors, the same on all ranks; see `directions`.
    """
    with exact(embeddings):
        z = wide(embeddings)
        return epps_pulley(z @ toward.to(z.dtype), knots, t_max).mean()


def invariance(embeddings: Tensor, targets: Tensor) -> Tensor:
    """Mean squared distance of all views from the centre of the target views (section 5, algorithm 2).

    Args:
        embeddings: [V, B, D], all views.
        targets: [V_g, B, D], the global ones.
    """
    return (wide(embeddings) - wide(targets).mean(dim=0)).square().mean()
