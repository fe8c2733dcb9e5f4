"""LeJEPA: SIGReg against the integral itself, its directions, and what its gradient does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.losses.sigreg import directions, epps_pulley, invariance, sigreg
from medloom.pretrain.objectives.lejepa import LeJEPA
from torch import Tensor

from .ranks_harness import on_two_ranks, one_process


def epps_pulley_by_hand(x: Tensor, knots: int, t_max: float) -> Tensor:
    """N ∫ |φ_x - φ|² φ dt with complex numbers over both signs of t, as the paper writes it; x [N, S]."""
    t = torch.linspace(-t_max, t_max, 2 * knots - 1, dtype=torch.float64)
    empirical = torch.exp(1j * x.double()[..., None] * t).mean(dim=0)
    normal = torch.exp(-t.square() / 2)
    error = (empirical - normal).abs().square() * normal
    return torch.trapezoid(error, t, dim=-1) * len(x)


def whole(x: Tensor, toward: Tensor) -> Tensor:
    return sigreg(x, toward, 17, 3.0)


def whole_by_hand(x: Tensor, toward: Tensor) -> Tensor:
    views = [epps_pulley_by_hand(view.double() @ toward.double(), 17, 3.0).mean() for view in x]
    return torch.stack(views).mean()


def embeddings(rows: int = 8) -> tuple[Tensor, Tensor]:
    x = torch.randn(3, rows, 5, generator=torch.Generator().manual_seed(1)) * 1.7 + 0.3
    return x, directions(0, 4, 5, 20)


def test_value_and_gradient_are_the_integral() -> None:
    x, toward = embeddings()
    value, gradients = one_process(whole, x, toward)
    expected, exact = one_process(whole_by_hand, x, toward)
    torch.testing.assert_close(value.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients[0], exact[0], atol=1e-5, rtol=1e-5)


def test_its_own_backward_pass_is_the_derivative() -> None:
    x = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(lambda v: epps_pulley(v, 9, 4.0), x.requires_grad_())


def test_two_ranks_are_one_process() -> None:
    x, toward = embeddings()
    value, gradients = one_process(whole, x, toward)
    again, spread = on_two_ranks(whole, x, toward, dims=[1, -1])
    torch.testing.assert_close(again, value)
    torch.testing.assert_close(spread[0], gradients[0], atol=1e-6, rtol=1e-5)


def test_lightly_agrees() -> None:
    loss = pytest.importorskip("lightly.loss.lejepa_loss")
    x, toward = embeddings()
    theirs = loss.SIGReg(knots=17, t_max=3.0, num_vectors=20)
    theirs._generate_unit_vectors = lambda *_: toward  # the same directions for both
    torch.testing.assert_close(whole(x, toward), theirs(x), atol=1e-5, rtol=1e-5)
    expected = loss.lejepa_invariance_loss(all_proj=x, global_proj=x[:2])
    torch.testing.assert_close(invariance(x, x[:2]), expected)


def test_normal_samples_pass_and_others_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(4000, 1, generator=generator)
    fine = float(epps_pulley(normal))
    others = {
        "collapsed": torch.zeros(4000, 1),
        "narrow": normal * 0.5,
        "shifted": normal + 0.5,
        "two points": normal.sign(),
    }
    for name, x in others.items():
        assert float(epps_pulley(x)) > 20 * fine, name
    # A constant: φ_x = 1 (at 0). ∫ (1 - φ)² φ dt over the line is √2π (1 - 2/√2 + 1/√3).
    full = math.sqrt(2 * math.pi) * (1 - math.sqrt(2) + 1 / math.sqrt(3))
    assert float(epps_pulley(torch.zeros(7, 1), 200, 8.0)) == pytest.approx(7 * full, rel=1e-3)


def test_its_gradient_alone_makes_embeddings_normal() -> None:
    x = (torch.rand(256, 3, generator=torch.Generator().manual_seed(0)) * 0.2 + 1).requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.05)
    for step in range(150):
        optimiser.zero_grad()
        sigreg(x[None], directions(0, step, 3, 32)).backward()
        optimiser.step()
    assert torch.allclose(x.mean(0), torch.zeros(3), atol=0.1)
    covariance = torch.cov(x.detach().T)
    assert torch.allclose(covariance, torch.eye(3), atol=0.2)


def test_directions_are_unit_vectors_keyed_by_step() -> None:
    one = directions(7, 3, 16, 50)
    torch.testing.assert_close(one.norm(dim=0), torch.ones(50))
    assert torch.equal(one, directions(7, 3, 16, 50))
    assert not torch.allclose(one, directions(7, 4, 16, 50))
    assert not torch.allclose(one, directions(8, 3, 16, 50))
    many = directions(0, 0, 16, 4000)
    np.testing.assert_allclose(many.mean(dim=1), 0, atol=0.02)  # no side is preferred


def test_wrong_configurations_are_refused() -> None:
    encoder = build_encoder({"name": "vit3d", "patch_size": [8, 8, 8], "depth": 1, "embed_dim": 24,
                             "num_heads": 2})  # fmt: skip

    def make(**config: Any) -> LeJEPA:
        return LeJEPA(LeJEPA.Config(hidden_dim=8, out_dim=4, **config), encoder)

    assert make().sizes((110, 110, 110)) == [(96, 96, 96), (48, 48, 48)]
    with pytest.raises(ConfigError, match=r"e\.g\."):
        make(sigreg=1.5)
