"""Collectives that a gradient goes through, and the one rule that makes losses over all ranks right.

The rule: each rank returns the mean over its own rows of a loss that may look at the rows of all ranks.
Distributed training averages the gradients of the ranks, and the backward pass of `gather` and of `mean`
sums over the ranks what they want of a row. Together that is the gradient of the mean over all rows, the
same as in one process with the whole batch (tests hold every loss to it). With an `all_gather` that gradients
do not cross, the gradient is too small by the number of ranks, which nothing but a slow run would show.

In a single process every function returns its argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """Number of ranks; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This rank, from 0."""
    return dist.get_rank() if world() > 1 else 0


def barrier() -> None:
    """Wait until all ranks are here."""
    if world() > 1:
        dist.barrier()


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks in order of rank: [B, ...] -> [ranks · B, ...]; gradients go back to their rank.

    All ranks must hold the same number of rows.
    """
    return _Gather.apply(x) if world() > 1 else x  # type: ignore[return-value]


def mean(x: Tensor) -> Tensor:
    """Element-wise mean over the ranks, with gradient."""
    return _Mean.apply(x) if world() > 1 else x  # type: ignore[return-value]


@torch.no_grad()
def total(x: Tensor) -> Tensor:
    """Element-wise sum over the ranks, without gradient; a new tensor where there are several."""
    if world() == 1:
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x


def largest(values: Sequence[float] | Tensor) -> list[float]:
    """Largest of each value over the ranks, the same list on all of them; every rank must call it."""
    packed = values.clone() if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
    if world() > 1:
        packed = packed.to("cuda" if "nccl" in dist.get_backend() else "cpu")
        dist.all_reduce(packed, op=dist.ReduceOp.MAX)
    return packed.tolist()


def any_rank(flag: bool) -> bool:
    """True on every rank when `flag` is true on one of them; every rank must call it."""
    return bool(largest([float(flag)])[0])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient)  # what every rank wants of every row
        return gradient.chunk(world())[rank()]


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return total(x) / world()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient / world()
