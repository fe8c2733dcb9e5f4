"""Projection heads: shapes, biases, and batch norms that count the rows of all ranks."""

from __future__ import annotations

import pytest
import torch
from medloom.pretrain.heads import RanksBatchNorm, mlp
from torch import Tensor, nn

from .ranks_harness import on_two_ranks, one_process


def test_layers_norms_and_biases() -> None:
    head = mlp([8, 16, 16, 4], "batch", last_norm="batch", last_affine=False)
    kinds = [type(module).__name__ for module in head]
    assert kinds == ["Linear", "RanksBatchNorm", "ReLU"] * 2 + ["Linear", "RanksBatchNorm"]
    assert all(module.bias is None for module in head if isinstance(module, nn.Linear))
    assert head[-1].weight is None and head(torch.randn(6, 8)).shape == (6, 4)
    plain = mlp([8, 16, 4], "none", activation=nn.GELU)
    assert [type(module).__name__ for module in plain] == ["Linear", "GELU", "Linear"]
    assert all(module.bias is not None for module in plain if isinstance(module, nn.Linear))
    layered = mlp([8, 4], last_norm="layer")
    torch.testing.assert_close(layered(torch.randn(3, 8)).mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="widths"):
        mlp([8])


def test_every_parameter_of_a_head_has_a_gradient_that_is_not_zero() -> None:
    head = mlp([8, 16, 4], "batch", last_norm="batch")
    (head(torch.randn(12, 8)) * torch.randn(12, 4)).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in head.parameters())


def normed(x: Tensor, target: Tensor) -> Tensor:
    """A loss behind a batch norm; its running statistics enter the value."""
    norm = RanksBatchNorm(x.shape[1]).to(x.dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2.0, x.shape[1]))
        norm.bias.copy_(torch.linspace(-1.0, 1.0, x.shape[1]))
    loss = (norm(x).float() - target).square().mean()
    assert norm.running_mean is not None and norm.running_var is not None
    return loss + norm.running_mean.sum().detach() + norm.running_var.sum().detach()


def test_two_ranks_norm_as_one_process_does() -> None:
    generator = torch.Generator().manual_seed(0)
    x, target = torch.randn(8, 5, generator=generator) * 3 + 1, torch.randn(8, 5, generator=generator)
    value, gradients = one_process(normed, x, target)
    again, spread = on_two_ranks(normed, x, target)
    torch.testing.assert_close(again, value)
    torch.testing.assert_close(spread[0], gradients[0], atol=1e-6, rtol=1e-5)


def test_evaluation_takes_the_running_statistics() -> None:
    norm = RanksBatchNorm(3)
    norm(torch.randn(64, 3) + 5)
    norm.eval()
    one = norm(torch.full((1, 3), 5.0))
    assert norm.running_mean is not None and bool((one > 1).all())
