"""Projection heads: what joint-embedding objectives put behind the pooled features and throw away.

Batch norms of a head count the rows of all ranks, as SimCLR and MoCo v3 do (see norms.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .norms import RanksBatchNorm

Norm = Literal["none", "batch", "layer"]


def mlp(
    dims: Sequence[int],
    norm: Norm = "batch",
    *,
    last_norm: Norm = "none",
    last_affine: bool = True,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Linear layers dims[0] -> ... -> dims[-1], each but the last followed by a norm and an activation.

    Args:
        dims: widths, at least two; two are a single linear layer.
        norm: behind each hidden layer; a layer before a batch norm has no bias, which it would take away.
        last_norm: behind the last layer.
        last_affine: False: the last norm only normalises, without weight and bias (MoCo v3).

    Returns:
        A module [B, dims[0]] -> [B, dims[-1]].
    """
    if len(dims) < 2:
        raise ValueError(f"mlp needs the widths of its input and output, not {list(dims)}")
    layers: list[nn.Module] = []
    for i, (wide, out) in enumerate(pairwise(dims)):
        last = i == len(dims) - 2
        kind, affine = (last_norm, last_affine) if last else (norm, True)
        layers.append(nn.Linear(wide, out, bias=kind != "batch"))
        if kind == "batch":
            layers.append(RanksBatchNorm(out, affine=affine))
        elif kind == "layer":
            layers.append(nn.LayerNorm(out, elementwise_affine=affine))
        if not last:
            layers.append(activation())
    return nn.Sequential(*layers)


class DINOHead(nn.Module):
    """Features [..., E] -> logits [..., K]: an MLP, the unit sphere, then unit prototypes (arXiv 2104.14294).

    Logits are cosines, so a temperature means the same whatever the features' length. Computed in float32
    under autocast too: with a teacher temperature of 0.04 bfloat16's 3 digits would be 0.2 in the exponent.
    """

    def __init__(self, dim: int, prototypes: int, hidden: int = 2048, bottleneck: int = 256, layers: int = 3):
        super().__init__()
        self.mlp = mlp([dim, *[hidden] * (layers - 1), bottleneck], "none", activation=nn.GELU)
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.prototypes = nn.Parameter(nn.init.normal_(torch.empty(prototypes, bottleneck), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """Cosines with all prototypes, float32."""
        with torch.autocast(x.device.type, enabled=False):
            x = F.normalize(self.mlp(x.float()), dim=-1, eps=1e-6)
            return F.linear(x, F.normalize(self.prototypes, dim=-1))
