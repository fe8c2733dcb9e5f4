"""Collectives with gradient: two ranks give the value and the gradient of one process."""

from __future__ import annotations

import torch
from medloom.pretrain import ranks
from torch import Tensor

from .ranks_harness import on_two_ranks, one_process


def pairs(x: Tensor) -> Tensor:
    """Mean over own rows of a function of all rows."""
    everything = ranks.gather(x)
    return (x @ everything.T).square().mean()


def spread(x: Tensor) -> Tensor:
    """A function of a mean over all rows."""
    return ranks.mean(x.mean(dim=0)).square().sum() + (ranks.mean((x * 3).cos().mean(dim=0)) ** 3).sum()


def placed(x: Tensor) -> Tensor:
    """Rows weighted by their place in the whole batch."""
    everything = ranks.gather(x)
    start = ranks.rank() * len(x)
    place = torch.arange(start, start + len(x), dtype=x.dtype)
    return (place[:, None] * x).sum(1).mean() + everything[0].sum() - float(ranks.world())


def test_losses_over_ranks_are_those_of_one_process() -> None:
    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for loss in (pairs, spread):
        value, gradients = one_process(loss, x)
        again, spread_out = on_two_ranks(loss, x)
        torch.testing.assert_close(again, value)
        torch.testing.assert_close(spread_out[0], gradients[0])


def test_rows_come_in_the_order_of_the_ranks() -> None:
    x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    value, gradients = one_process(placed, x)
    again, spread_out = on_two_ranks(placed, x)
    torch.testing.assert_close(again + 2, value + 1)
    torch.testing.assert_close(spread_out[0], gradients[0])


def test_in_one_process_nothing_is_copied() -> None:
    x = torch.randn(3)
    assert ranks.gather(x) is x and ranks.mean(x) is x and ranks.total(x) is x
    assert ranks.world() == 1 and ranks.rank() == 0
