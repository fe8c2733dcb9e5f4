"""Stain jitter of histology: haematoxylin, eosin and DAB vary in strength, as between laboratories.

Colour deconvolution: Ruifrok and Johnston, Anal Quant Cytol Histol 2001, with their optical densities; jitter
of the stains: Tellez et al., IEEE TMI 2018 and arXiv 1902.06543. A density here is -ln of the transmitted
light: 0.05 is a twentieth of the light. Today's scikit-image divides it by 13.8, so that an offset of 0.05
there halves the light; the papers' 0.05 and 0.2 belong to a scale of their own (log(2 + light)) and are about
0.1 and 0.4 of ours.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .draw import between, draw, per_sample, sometimes
from .normalise import Limits, in_unit, unit_limits

# Rows haematoxylin, eosin, DAB; columns absorption of R, G, B (Ruifrok and Johnston, table 1).
RGB_FROM_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
HED_FROM_RGB = np.linalg.inv(RGB_FROM_HED)
_DARKEST = 1e-6  # of the light, in place of none, whose logarithm is infinite


def stain_jitter(u: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Each stain s becomes alpha s + beta, in pictures u [B, 3, H, W] in [0, 1].

    Args:
        alpha, beta: [B, 3] for haematoxylin, eosin, DAB; 1 and 0 leave the picture alone bit for bit.
    """
    if u.shape[1] != 3:
        raise ValueError(f"stains are seen in 3 channels, the images have {u.shape[1]}: switch stain off")
    stains = _mix(-torch.log(u.clamp_min(_DARKEST)), HED_FROM_RGB)
    shape = (*alpha.shape, *[1] * (u.ndim - 2))
    stains = alpha.view(shape) * stains + beta.view(shape)
    out = torch.exp(-_mix(stains, RGB_FROM_HED)).clamp(0, 1)
    neutral = ((alpha == 1) & (beta == 0)).all(dim=1)
    return torch.where(per_sample(neutral, u), u, out)


def random_stain(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    sigma: float = 0.1,
    probability: float = 1.0,
    limits: Limits | None = None,
    only: Tensor | None = None,
    stream: str = "stain",
) -> Tensor:
    """`stain_jitter`, alpha uniform in 1 +- `sigma`, beta in +- `sigma`; limits: black and white of x."""
    draws = draw(x, seed, stream, positions, 7)
    alpha = between(draws.u[:, 1:4], (1 - sigma, 1 + sigma))
    beta = between(draws.u[:, 4:7], (-sigma, sigma))

    def change(part: Tensor, black: Tensor, white: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return in_unit(part, black, white, lambda u: stain_jitter(u, a, b))

    return sometimes(x, draws.below(probability, only), change, *unit_limits(x, limits), alpha, beta)


def _mix(x: Tensor, matrix: np.ndarray) -> Tensor:
    """Row vectors of channels times `matrix`, element by element: nine products need no matmul."""
    channels = [
        sum(
            (x[:, k : k + 1] * float(matrix[k, c]) for k in range(1, 3)), start=x[:, :1] * float(matrix[0, c])
        )
        for c in range(3)
    ]
    return torch.cat(channels, dim=1)
