"""Regularisers that spread the features of a batch over the sphere, so that a teacher cannot collapse.

Both look at the rows of all ranks and return the mean over the rows of this one (see ranks.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ranks
from .precision import exact, wide


def koleo_loss(x: Tensor, eps: float = 1e-8) -> Tensor:
    """-mean log distance to the nearest neighbour, after normalisation (arXiv 1806.03198, equation 2).

    Args:
        x: [B, E]; with fewer than two rows over all ranks there is no neighbour.
        eps: keeps two equal rows from minus infinity, as in DINOv2.
    """
    own = F.normalize(wide(x), dim=-1, eps=eps)
    everyone = ranks.gather(own)
    with torch.no_grad(), exact(own):
        similarity = own @ everyone.T
        similarity.diagonal(offset=ranks.rank() * len(own)).fill_(-2.0)  # not oneself
        nearest = similarity.argmax(dim=1)
    distance = F.pairwise_distance(own, everyone.index_select(0, nearest), eps=eps)
    return -(distance + eps).log().mean()


def kde_loss(x: Tensor, kappa: float = 5.0) -> Tensor:
    """Mean log of the kernel density at each row: log mean_j exp(kappa cos(x_i, x_j)).

    The von Mises-Fisher kernel that Virchow2 (arXiv 2408.00738, section 3) puts in the place of KoLeo: it is
    bounded and its gradient too, where that of KoLeo grows as 1 / distance.

    Args:
        x: [B, E].
        kappa: concentration of the kernel.
    """
    own = F.normalize(wide(x), dim=-1)
    everyone = ranks.gather(own)
    with exact(own):
        similarity = own @ everyone.T
    return (kappa * similarity).logsumexp(dim=1).mean() - math.log(len(everyone))
