"""Batch norms that count the rows of all ranks, in heads and encoders, in any number of axes.

With the statistics of one rank a network can tell which rows share its batch and cheat at telling them apart,
and a run on eight GPUs would not be the run on one. torch's SyncBatchNorm does the same on CUDA only; these
run, and are tested, on CPU processes too. The price is two small collectives a norm.

`count_all_ranks` turns the batch norms of any network (torch's own and timm's, which have an activation
inside) into these where they stand: names, weights and running statistics stay. In one process, and in
evaluation mode, they are what they were, bit for bit.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import ranks


def over_ranks(module: _BatchNorm, x: Tensor) -> Tensor:
    """What `module` makes of x [B, C, ...] with the statistics of all ranks, in the dtype of x.

    All ranks must hold as many rows of the same size. Statistics are in float32.
    """
    dims = (0, *range(2, x.ndim))
    shape = (1, -1, *[1] * (x.ndim - 2))
    rows = x.float()
    mean = ranks.mean(rows.mean(dim=dims))
    centred = rows - mean.view(shape)
    variance = ranks.mean(centred.square().mean(dim=dims))
    _follow(module, mean.detach(), variance.detach(), ranks.world() * rows.numel() // rows.shape[1])
    out = centred * torch.rsqrt(variance + module.eps).view(shape)
    if module.weight is not None:
        out = out * module.weight.view(shape) + module.bias.view(shape)
    return out.to(x.dtype)


@torch.no_grad()
def _follow(module: _BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    """Running statistics, with the unbiased variance as torch keeps it."""
    if module.running_mean is None or module.running_var is None or module.num_batches_tracked is None:
        return
    module.num_batches_tracked.add_(1)
    momentum = 0.1 if module.momentum is None else module.momentum
    module.running_mean.lerp_(mean, momentum)
    module.running_var.lerp_(variance * (count / max(1, count - 1)), momentum)


class RanksBatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` over the rows [B, E] of all ranks."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, E] -> [B, E]."""
        return over_ranks(self, x) if self.training and ranks.world() > 1 else super().forward(x)


class RanksBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the pictures [B, C, H, W] of all ranks."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        return over_ranks(self, x) if self.training and ranks.world() > 1 else super().forward(x)


class RanksBatchNorm3d(nn.BatchNorm3d):
    """`nn.BatchNorm3d` over the volumes [B, C, D, H, W] of all ranks."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, D, H, W] -> the same."""
        return over_ranks(self, x) if self.training and ranks.world() > 1 else super().forward(x)


def count_all_ranks(network: nn.Module) -> nn.Module:
    """Turn every batch norm in `network` into one over all ranks, in place; returns the network."""
    kinds = {
        nn.BatchNorm1d: RanksBatchNorm,
        nn.BatchNorm2d: RanksBatchNorm2d,
        nn.BatchNorm3d: RanksBatchNorm3d,
        **_with_activation(),
    }
    for module in network.modules():
        kind = kinds.get(type(module))
        if kind is not None:
            module.__class__ = kind  # its parameters, buffers and hooks are the same ones
    return network


@cache
def _with_activation() -> dict[type[nn.Module], type[nn.Module]]:
    """timm's batch norm with dropout and activation inside, and what takes its place."""
    from timm.layers.norm_act import BatchNormAct2d

    class RanksBatchNormAct2d(BatchNormAct2d):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training or ranks.world() == 1:
                return super().forward(x)
            parts: Any = self
            return parts.act(parts.drop(over_ranks(parts, x)))

    return {BatchNormAct2d: RanksBatchNormAct2d}
