"""Contrastive losses with the samples of all ranks as negatives, in float32 whatever the network's precision.

Negatives come from every rank, with gradient, because their number is what the loss lives on; each rank
returns the mean over its own rows (see ranks.py). The price is one gather of the embeddings a step.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .. import ranks
from .precision import exact, wide


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """NT-Xent of SimCLR (arXiv 2002.05709, equation 1), the mean over both views.

    For each embedding the other view of its image is the positive; both views of all other images, on all
    ranks, are the negatives.

    Args:
        first, second: [B, D] embeddings of two views of the same images; normalised here.
        temperature: divides the cosines.
    """
    one, two = _unit(first), _unit(second)
    all_one, all_two = ranks.gather(one), ranks.gather(two)
    own = _own_columns(len(one), one.device)
    itself = own.unsqueeze(1) == torch.arange(len(all_one), device=one.device)
    loss = one.new_zeros(())
    for anchor, others, same in ((one, all_two, all_one), (two, all_one, all_two)):
        with exact(anchor):
            among = (anchor @ same.T).masked_fill(itself, float("-inf"))
            logits = torch.cat([anchor @ others.T, among], dim=1) / temperature
        loss = loss + functional.cross_entropy(logits, own)
    return loss / 2


def info_nce(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """InfoNCE of MoCo v3 (arXiv 2104.02057, equation 1), scaled by 2·temperature as in its algorithm 1.

    Args:
        query: [B, D], with gradient; normalised here.
        key: [B, D] of the same images from the momentum encoder; those of all ranks are the negatives.
        temperature: divides the cosines.
    """
    query, keys = _unit(query), ranks.gather(_unit(key))
    own = _own_columns(len(query), query.device)
    with exact(query):
        logits = query @ keys.T / temperature
    return 2 * temperature * functional.cross_entropy(logits, own)


def _unit(x: Tensor) -> Tensor:
    return functional.normalize(wide(x), dim=-1)


def _own_columns(rows: int, device: torch.device) -> Tensor:
    """Where the rows of this rank lie among those of all ranks: int64 [rows]."""
    start = ranks.rank() * rows
    return torch.arange(start, start + rows, device=device)
