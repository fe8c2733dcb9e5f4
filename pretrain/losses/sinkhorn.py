"""Sinkhorn-Knopp: soft assignments to prototypes that use all prototypes equally over the batch of all ranks.

SwAV (arXiv 2006.09882, section 3.1), as DINOv2 centres its teacher. The matrix exp(logits / T) is scaled by
one vector over prototypes and one over rows; only these vectors are iterated (two products of matrix and
vector an iteration) and the matrix is written once at the end, where the usual code rewrites it six times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ranks
from .precision import exact, wide


@torch.no_grad()
def sinkhorn_knopp(
    logits: Tensor, temperature: float, iterations: int = 3, valid: Tensor | None = None
) -> Tensor:
    """Rows sum to 1; in the limit each prototype gets the same share of all rows of all ranks.

    Args:
        logits: [R, K]; the number of rows may differ between the ranks.
        temperature: of the teacher.
        valid: bool [R]; rows that do not count come back as zeros.

    Returns:
        [R, K], float32 at least, without gradient.
    """
    logits = wide(logits)
    # One constant for all rows and ranks: the scaling forgets it, exp does not overflow.
    highest = ranks.gather(logits.amax()[None]).amax()
    matrix = (logits - highest).div_(temperature).exp_()
    scale = torch.ones_like(logits[:, 0])
    if valid is not None:
        scale = valid.to(matrix.dtype)
        matrix.mul_(scale[:, None])
    smallest = torch.finfo(matrix.dtype).tiny
    share = torch.ones_like(matrix[0])
    with exact(matrix):
        for _ in range(iterations):
            column = ranks.total(scale @ matrix)
            share = 1.0 / (column / column.mean().clamp_min(smallest)).clamp_min(smallest)
            scale = 1.0 / (matrix @ share).clamp_min(smallest)
    return matrix.mul_(share).mul_(scale[:, None])
