"""Collapse diagnostics against matrices whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch
from medloom.pretrain.diagnostics import alarm, alpha_req, feature_std, rankme


def orthogonal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """[rows, columns] with orthonormal columns."""
    noise = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(noise).Q


def with_spectrum(values: torch.Tensor, rows: int = 256, columns: int = 64) -> torch.Tensor:
    """A matrix [rows, columns] with these singular values, its columns of mean 0."""
    noise = torch.randn(rows, len(values), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    left = torch.linalg.qr(noise - noise.mean(0)).Q
    return (left * values) @ orthogonal(columns, len(values), 1).T


@pytest.mark.parametrize("k", [1, 2, 5, 32])
def test_rankme_of_k_equal_singular_values_is_k(k: int) -> None:
    assert rankme(with_spectrum(torch.full((k,), 3.0, dtype=torch.float64))) == pytest.approx(k, rel=1e-3)


def test_rankme_of_unequal_singular_values_is_the_entropy() -> None:
    share = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    expected = math.exp(-sum(p * math.log(p) for p in share.tolist()))
    assert rankme(with_spectrum(10 * share)) == pytest.approx(expected, rel=1e-3)


def test_rankme_does_not_know_scale_or_rotation() -> None:
    x = with_spectrum(torch.linspace(1, 4, 20, dtype=torch.float64))
    turn = orthogonal(64, 64, 7)
    assert rankme(100 * x @ turn) == pytest.approx(rankme(x), rel=1e-6)
    assert rankme(torch.zeros(8, 4)) == 1.0
    assert math.isnan(rankme(torch.full((8, 4), math.nan)))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_req_finds_the_exponent(alpha: float) -> None:
    rank = torch.arange(1, 41, dtype=torch.float64)
    assert alpha_req(with_spectrum(rank ** (-alpha / 2))) == pytest.approx(alpha, rel=1e-6)


def test_alpha_req_needs_three_directions() -> None:
    assert math.isnan(alpha_req(with_spectrum(torch.tensor([2.0, 1.0], dtype=torch.float64))))
    assert math.isnan(alpha_req(torch.zeros(1, 8)))


def test_feature_std_is_one_for_isotropic_and_zero_for_one_direction() -> None:
    x = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert feature_std(x) == pytest.approx(1.0, abs=0.02)
    assert feature_std(torch.rand(16, 1) * torch.ones(16, 32) + 0.1) == pytest.approx(0.0, abs=1e-6)
    assert math.isnan(feature_std(torch.ones(1, 8)))


def test_a_constant_encoder_raises_the_alarm_and_a_healthy_one_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    healthy = torch.randn(64, 32, generator=generator)
    constant = torch.ones(64, 1) * torch.randn(1, 32, generator=generator)
    line = torch.randn(64, 1, generator=generator) * torch.randn(1, 32, generator=generator)
    assert alarm(healthy) is None
    assert "feature_std" in str(alarm(constant)) and rankme(constant) == pytest.approx(1.0, abs=1e-3)
    assert "rankme" in str(alarm(line))
    healthy[3, 3] = math.inf
    assert "finite" in str(alarm(healthy))
