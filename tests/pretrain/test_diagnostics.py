"""Collapse diagnostics against matrices whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch
from medloom.pretrain.diagnostics import alpha_req, describe, feature_std, lidar, rankme


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
    assert math.isnan(rankme(torch.full((8, 4), math.nan))) and math.isnan(rankme(torch.zeros(0, 1)))


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


def test_the_centred_rank_sees_what_a_common_offset_hides() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(64, 32, generator=generator)
    found = describe(spread + 1000)
    assert found["rankme"] < 2 and found["rank_centred"] == pytest.approx(rankme(spread), rel=0.1)
    assert math.isnan(describe(spread[:8])["rank_centred"]), "eight samples span few directions anyway"
    line = torch.randn(64, 1, generator=generator) * torch.randn(1, 32, generator=generator) + 5
    assert describe(line)["rank_centred"] == pytest.approx(1, abs=1e-3)
    assert all(math.isnan(value) for value in describe(torch.full((16, 4), math.nan)).values())


def lidar_of_the_paper(views: torch.Tensor, delta: float = 1e-4, eps: float = 1e-7) -> float:
    """Equations of section 4 as they stand, with matrix roots: views [V, B, E]."""
    x = views.double().transpose(0, 1)  # [n, q, E]
    means = x.mean(1)
    between = sum(torch.outer(m - means.mean(0), m - means.mean(0)) for m in means) / len(means)
    rest = (x - means[:, None]).reshape(-1, x.shape[-1])
    within = sum(torch.outer(r, r) for r in rest) / len(rest) + delta * torch.eye(x.shape[-1])
    value, vector = torch.linalg.eigh(within)
    root = vector @ torch.diag(value**-0.5) @ vector.T
    found = torch.linalg.eigvalsh(root @ between @ root).clamp_min(0)
    share = found / found.sum() + eps
    return math.exp(-float((share * share.log()).sum()))


@pytest.mark.parametrize(("images", "width"), [(12, 30), (60, 8)])
def test_lidar_is_the_formula_of_the_paper(images: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(images, width, generator=generator, dtype=torch.float64) * torch.linspace(
        3, 0.1, width
    )
    views = centre + 0.3 * torch.randn(4, images, width, generator=generator, dtype=torch.float64)
    assert lidar(views) == pytest.approx(lidar_of_the_paper(views), rel=1e-4)


def test_lidar_counts_directions_that_tell_images_apart_and_not_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 200, 32, generator=generator)
    few = torch.zeros(200, 32)
    few[:, :4] = 30 * torch.randn(200, 4, generator=generator)
    assert lidar(few + noise) < 6 < 20 < lidar(noise), "rankme would give the second 32 as well"
    assert lidar(torch.ones(2, 8, 4)) == 1.0
    assert math.isnan(lidar(noise[:1])) and math.isnan(lidar(noise[:, :1]))
