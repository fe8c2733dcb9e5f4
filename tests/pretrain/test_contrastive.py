"""Contrastive losses against the papers' formulas in float64, on one and on two ranks."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from medloom.pretrain.losses.contrastive import info_nce, nt_xent
from torch import Tensor

from .ranks_harness import on_two_ranks, one_process


def pair(rows: int = 6, dim: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two sets of float32 embeddings."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, dim, generator=generator), torch.randn(rows, dim, generator=generator)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b) / (a.norm() * b.norm())


def nt_xent_by_hand(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """SimCLR's equation 1, term by term: z_2k-1 and z_2k are the views of image k."""
    z = [row for both in zip(first.double(), second.double(), strict=True) for row in both]
    total = z[0].new_zeros(())
    for i, anchor in enumerate(z):
        positive = i + 1 if i % 2 == 0 else i - 1
        weights = [torch.exp(cosine(anchor, z[k]) / temperature) for k in range(len(z)) if k != i]
        total = total - torch.log(torch.exp(cosine(anchor, z[positive]) / temperature) / sum(weights))
    return total / len(z)


def info_nce_by_hand(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """MoCo v3's equation 1, times 2 temperature."""
    q, k = query.double(), key.double()
    total = q.new_zeros(())
    for i in range(len(q)):
        weights = [torch.exp(cosine(q[i], k[j]) / temperature) for j in range(len(k))]
        total = total - torch.log(weights[i] / sum(weights))
    return 2 * temperature * total / len(q)


CASES = [(nt_xent, nt_xent_by_hand), (info_nce, info_nce_by_hand)]


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize(("loss", "by_hand"), CASES)
def test_value_and_gradient_are_the_formulas(
    loss: Callable[..., Tensor], by_hand: Callable[..., Tensor], temperature: float
) -> None:
    a, b = pair()
    value, gradients = one_process(loss, a, b, temperature=temperature)
    expected, exact = one_process(by_hand, a, b, temperature=temperature)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(gradients, exact, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("loss", [nt_xent, info_nce])
def test_two_ranks_are_one_process(loss: Callable[..., Tensor]) -> None:
    a, b = pair(8)
    value, gradients = one_process(loss, a, b, temperature=0.2)
    again, spread = on_two_ranks(loss, a, b, temperature=0.2)
    torch.testing.assert_close(again, value, atol=1e-6, rtol=1e-5)
    for mine, theirs in zip(spread, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_lightly_agrees() -> None:
    lightly = pytest.importorskip("lightly.loss")
    a, b = pair(7)
    value, gradients = one_process(nt_xent, a, b, temperature=0.3)
    expected, theirs = one_process(lightly.NTXentLoss(temperature=0.3), a, b)
    torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients[0], theirs[0], atol=1e-5, rtol=1e-5)


def test_closed_forms() -> None:
    same = torch.ones(4, 3)
    assert float(nt_xent(same, same, 0.1)) == pytest.approx(math.log(7))  # 1 of 7 others, all alike
    assert float(info_nce(same, same, 0.5)) == pytest.approx(math.log(4))  # 2 · 0.5 · log 4
    axes = torch.eye(4)
    assert float(nt_xent(axes, axes, 0.05)) == pytest.approx(math.log1p(6 * math.exp(-20)), abs=1e-6)


@pytest.mark.parametrize("loss", [nt_xent, info_nce])
def test_autocast_does_not_round_the_cosines(loss: Callable[..., Tensor]) -> None:
    a, b = pair(32, 64)
    expected = loss(a, b, 0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(a, b, 0.05), expected)
