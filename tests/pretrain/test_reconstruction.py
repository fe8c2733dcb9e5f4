"""Reconstruction losses and patches against float64 oracles, on one and on two ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from medloom.pretrain.losses.reconstruction import (
    masked_l1,
    masked_mse,
    normalise_patches,
    patch_statistics,
)
from medloom.pretrain.pixels import patchify, unpatchify
from torch import Tensor

from tests.pretrain.ranks_harness import on_two_ranks, one_process

LOSSES = {"mse": (masked_mse, 2), "l1": (masked_l1, 1)}


def inputs(channels: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Predictions, targets [4, 6, 5·C], hidden [4, 6], counts [4, 6, 5]; in one image nothing counts."""
    generator = torch.Generator().manual_seed(0)
    predicted, target = (torch.randn(4, 6, 5 * channels, generator=generator) for _ in range(2))
    hidden = torch.rand(4, 6, generator=generator) < 0.5
    counts = torch.rand(4, 6, 5, generator=generator) < 0.7
    hidden[0] = torch.tensor([True, False, False, False, False, True])
    counts[3] = False
    return predicted, target, hidden, counts


def oracle(
    predicted: Tensor, target: Tensor, hidden: Tensor, counts: Tensor | None, power: int
) -> tuple[float, np.ndarray]:
    """Value and gradient, pixel by pixel in float64."""
    p, t = predicted.double().numpy(), target.double().numpy()
    channels = 1 if counts is None else p.shape[2] // counts.shape[2]
    value, gradient = 0.0, np.zeros_like(p)
    for b in range(len(p)):
        places = [
            (n, k)
            for n in range(p.shape[1])
            for k in range(p.shape[2])
            if hidden[b, n] and (counts is None or counts[b, n, k // channels])
        ]
        for n, k in places:
            error = p[b, n, k] - t[b, n, k]
            value += abs(error) ** power / len(places) / len(p)
            gradient[b, n, k] = power * abs(error) ** (power - 1) * np.sign(error) / len(places) / len(p)
    return value, gradient


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("some", [True, False])
def test_a_loss_is_the_mean_over_what_is_hidden_and_counts(name: str, some: bool) -> None:
    loss, power = LOSSES[name]
    predicted, target, hidden, counts = inputs()
    given: list[Any] = [predicted, target, hidden, *([counts] if some else [])]
    value, gradients = one_process(loss, *given)
    expected, gradient = oracle(predicted, target, hidden, counts if some else None, power)
    assert float(value) == pytest.approx(expected, abs=1e-5)
    assert np.abs(gradients[0].numpy() - gradient).max() < 1e-5
    assert np.abs(gradients[1].numpy() + gradient).max() < 1e-5


@pytest.mark.parametrize("name", LOSSES)
def test_two_ranks_are_one_process(name: str) -> None:
    loss, _ = LOSSES[name]
    value, gradients = one_process(loss, *inputs())
    ranks, shared = on_two_ranks(loss, *inputs())
    assert float(ranks) == pytest.approx(float(value), abs=1e-6)
    for one, two in zip(gradients, shared, strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def test_nothing_hidden_costs_nothing_and_half_precision_is_summed_in_float32() -> None:
    predicted, target, hidden, counts = inputs()
    assert float(masked_mse(predicted, target, torch.zeros_like(hidden), counts)) == 0.0
    assert masked_mse(predicted.bfloat16(), target, hidden).dtype == torch.float32


def test_normalised_patches_have_mean_0_and_variance_1_and_even_ones_are_0() -> None:
    patches = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(1)) * 40 + 300
    patches[0, 0] = 5.0
    normal, (mean, deviation) = normalise_patches(patches), patch_statistics(patches)
    assert torch.equal(normal[0, 0], torch.zeros(64))
    exact = patches.double()
    exact = (exact - exact.mean(-1, keepdim=True)) / (exact.var(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(normal.double(), exact, atol=1e-5)
    assert torch.allclose(normal * deviation + mean, patches, atol=1e-3)


@pytest.mark.parametrize(("spatial", "patch"), [((8, 12), (4, 2)), ((4, 6, 8), (2, 3, 4))])
def test_patches_go_there_and_back(spatial: tuple[int, ...], patch: tuple[int, ...]) -> None:
    x = torch.arange(2 * 3 * torch.Size(spatial).numel(), dtype=torch.float32).reshape(2, 3, *spatial)
    patches = patchify(x, patch)
    grid = [s // p for s, p in zip(spatial, patch, strict=True)]
    assert torch.equal(unpatchify(patches, grid, patch), x)
    corner = x[(0, slice(None), *(slice(0, p) for p in patch))]
    assert torch.equal(patches[0, 0], corner.movedim(0, -1).reshape(-1))
