"""VoCo's losses: how much a random crop overlaps each base crop of its volume, told by similarity alone.

Wu et al., arXiv 2402.17300 (one volume) and 2410.09890 (between volumes), in float32. A volume of all air
gives equal features everywhere; similarities of 1 then stand against shares below 1 and cost a finite
logarithm, because 1 - distance is held above 1e-6.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .. import ranks
from .precision import exact, wide

LEAST = 1e-6


def similarity(crops: Tensor, bases: Tensor) -> Tensor:
    """max(0, cosine) of crops [..., R, D] with bases [..., n, D] -> [..., R, n] (equation 1)."""
    with exact(crops):
        product = _unit(crops) @ _unit(bases).transpose(-1, -2)
    return product.clamp(0.0, 1.0)


def position(predicted: Tensor, share: Tensor) -> Tensor:
    """Cross-entropy of distances: -log(1 - |y - s|) for each random crop (equations 3 and 4).

    Overlapping bases count by their share, those without overlap all alike: a crop overlaps at most four of
    nine bases and mostly one, which an even mean would hide behind the others.

    Args:
        predicted: [..., R, n] similarities.
        share: [..., R, n] of each random crop that lies in each base; 0: no overlap.
    """
    share = share.to(predicted.dtype)
    cost = -(1 - (share - predicted).abs()).clamp_min(LEAST).log()
    apart = (share == 0).to(cost.dtype)
    near = (cost * share).sum(-1) / share.sum(-1).clamp_min(LEAST)
    far = (cost * apart).sum(-1) / apart.sum(-1).clamp_min(1.0)
    return (near + far).mean()


def discrepancy(bases: Tensor) -> Tensor:
    """Mean max(0, cosine)² over pairs of bases [..., n, D] of one volume (equation 5, squared)."""
    count = bases.shape[-2]
    above = torch.ones(count, count, device=bases.device).triu(1)
    return (similarity(bases, bases).square() * above).sum((-1, -2)).mean() / max(1, count * (count - 1) // 2)


def between_volumes(student: Tensor, teacher: Tensor, bases: Tensor) -> Tensor:
    """Student and teacher agree on how like a crop is to the bases of all *other* volumes, on all ranks.

    Args:
        student: [B, R, D], with gradient.
        teacher: [B, R, D], the same crops.
        bases: [B, n, D] of the teacher.

    Returns:
        Mean of -log(1 - |s - t|); 0 for a single volume.
    """
    everything = ranks.gather(bases.detach()).flatten(0, 1)  # [N n, D]
    told = similarity(student, everything)
    wanted = similarity(teacher.detach(), everything)
    cost = -(1 - (told - wanted).abs()).clamp_min(LEAST).log()
    first = ranks.rank() * len(bases)
    own = torch.arange(first, first + len(bases), device=bases.device)
    of = torch.arange(len(everything), device=bases.device) // bases.shape[1]
    other = (own[:, None, None] != of).to(cost.dtype)  # [B, 1, N n]
    rows = max(1, len(everything) - bases.shape[1])
    return (cost * other).sum(-1).mean() / rows


def _unit(x: Tensor) -> Tensor:
    return functional.normalize(wide(x), dim=-1)
