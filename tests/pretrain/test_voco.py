"""VoCo: labels that are true overlaps, losses as the formulas, what a step trains and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.encoders import Encoder, build_encoder
from medloom.pretrain.losses.voco import between_volumes, discrepancy, position, similarity
from medloom.pretrain.objectives import OBJECTIVES, Batch
from medloom.pretrain.objectives.voco import VoCo
from medloom.pretrain.views import ViewConfig
from torch import Tensor

from .overfit import blobs, overfit
from .ranks_harness import on_two_ranks, one_process

ENCODER = {"name": "vit3d", "patch_size": [8, 8, 8], "depth": 2, "embed_dim": 48, "num_heads": 3}
STILL = ViewConfig(flip=0.0)
SMALL: dict[str, Any] = {"size": [8, 16, 16], "hidden_dim": 64, "out_dim": 32, "crops": 3}


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.relu((a @ b) / (a.norm() * b.norm()))


def position_by_hand(randoms: Tensor, bases: Tensor, share: Tensor) -> Tensor:
    """Term by term: randoms [B, R, D], bases [B, n, D], share [B, R, n]."""
    total = randoms.double().new_zeros(())
    for b in range(len(randoms)):
        for r in range(randoms.shape[1]):
            near, weight, far, count = 0.0, 0.0, 0.0, 0
            for i in range(bases.shape[1]):
                s = cosine(randoms[b, r].double(), bases[b, i].double())
                y = float(share[b, r, i].detach())
                if y > 0:
                    near, weight = near - y * torch.log(1 - (y - s).abs()), weight + y
                else:
                    far, count = far - torch.log(1 - s), count + 1
            total = total + near / weight + far / max(1, count)
    return total / (len(randoms) * randoms.shape[1])


def predicted_position(randoms: Tensor, bases: Tensor, share: Tensor) -> Tensor:
    return position(similarity(randoms, bases), share.detach())


def discrepancy_by_hand(bases: Tensor) -> Tensor:
    x, total, count = bases.double(), bases.double().new_zeros(()), 0
    for volume in x:
        for i in range(len(volume)):
            for j in range(i + 1, len(volume)):
                total, count = total + cosine(volume[i], volume[j]) ** 2, count + 1
    return total / count


def between_by_hand(student: Tensor, teacher: Tensor, bases: Tensor) -> Tensor:
    s, t, q = student.double(), teacher.double().detach(), bases.double().detach()
    costs = [
        -torch.log(1 - (cosine(s[b, r], base) - cosine(t[b, r], base)).abs())
        for b in range(len(s)) for r in range(s.shape[1])
        for c in range(len(q)) if c != b for base in q[c]
    ]  # fmt: skip
    return torch.stack(costs).mean()


def tensors(volumes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    randoms = torch.randn(volumes, 3, 6, generator=generator)
    teacher = randoms + 0.5 * torch.randn(volumes, 3, 6, generator=generator)
    return randoms, teacher, torch.randn(volumes, 5, 6, generator=generator)


def share_of(volumes: int = 4) -> Tensor:
    share = torch.rand(volumes, 3, 5, generator=torch.Generator().manual_seed(4))
    return torch.where(share > 0.5, share * 0.6, 0.0) + torch.tensor([0.2, 0.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("loss", "by_hand", "inputs"),
    [
        (predicted_position, position_by_hand, (tensors()[0], tensors()[2], share_of())),
        (discrepancy, discrepancy_by_hand, (tensors()[2],)),
        (between_volumes, between_by_hand, tensors()),
    ],
    ids=["position", "discrepancy", "between"],
)
def test_losses_are_the_formulas_and_those_of_two_ranks(
    loss: Callable[..., Tensor], by_hand: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> None:
    value, gradients = one_process(loss, *inputs)
    expected, exact = one_process(by_hand, *inputs)
    torch.testing.assert_close(value.double(), expected, atol=1e-5, rtol=1e-5)
    again, spread = on_two_ranks(loss, *inputs)
    torch.testing.assert_close(again, value)
    for mine, theirs, both in zip(gradients, exact, spread, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(both, mine, atol=1e-6, rtol=1e-5)


def test_losses_are_finite_where_features_are_equal() -> None:
    x = torch.ones(2, 3, 4, requires_grad=True)
    share = torch.zeros(2, 3, 3).index_fill(2, torch.tensor([0]), 1.0)
    loss = position(similarity(x, x), share) + discrepancy(x) + between_volumes(x, -x, x)
    loss.backward()
    assert loss.isfinite() and x.grad is not None and x.grad.isfinite().all()
    assert float(between_volumes(x[:1], x[:1], x[:1]).detach()) == 0.0  # one volume has no other


def make(**config: Any) -> tuple[VoCo, Encoder, Batch]:
    torch.manual_seed(0)
    encoder = build_encoder(ENCODER)
    objective = VoCo(VoCo.Config(**{**SMALL, **config}), encoder)
    image = blobs(3, [10, 50, 48])
    return objective, encoder, Batch(image=image, position=torch.arange(3) + 7, seed=1, steps=100)


def test_shares_are_the_voxels_that_crops_have_in_common() -> None:
    objective, _, batch = make(view=STILL, crops=6)
    region = [8, 48, 48]
    # Each voxel is its own number, so that crops tell which voxels they have.
    batch.image = torch.arange(8 * 48 * 48, dtype=torch.float32).reshape(1, 1, *region).repeat(3, 1, 1, 1, 1)
    crops, share = objective.cut(batch)
    assert crops.shape == (15, 3, 1, 8, 16, 16) and share.shape == (3, 6, 9)
    bases, randoms = crops[:9], crops[9:]
    for b in range(3):
        for r in range(6):
            for i in range(9):
                common = torch.isin(randoms[r, b], bases[i, b]).double().mean()
                assert float(share[b, r, i]) == pytest.approx(float(common), abs=1e-6)
    torch.testing.assert_close(share.sum(-1), torch.ones(3, 6))  # the grid covers the volume
    assert torch.equal(bases[:, 0].flatten().sort().values, batch.image[0].flatten())


def test_a_larger_volume_gives_the_grid_a_place_of_its_own() -> None:
    objective, _, batch = make(view=STILL)
    first = objective.cut(batch)[0]
    assert torch.equal(first, objective.cut(batch)[0])
    batch.position = batch.position + 50
    assert not torch.equal(first, objective.cut(batch)[0])


def test_a_step_trains_everything() -> None:
    objective, encoder, batch = make()
    output = objective.step(batch, encoder)
    assert set(output.terms) == {"position", "discrepancy", "between"} and output.loss.isfinite()
    expected = sum(output.terms.values())
    torch.testing.assert_close(output.loss.detach(), expected)
    assert output.features.shape == (3, 48) and output.views is None
    output.loss.backward()
    for module in (encoder, objective.projector):
        for name, p in module.named_parameters():
            assert p.grad is not None and p.grad.isfinite().all(), name
    assert all(p.grad is None and not p.requires_grad for p in objective.teacher.parameters())
    before = [p.clone() for p in objective.teacher.parameters()]
    with torch.no_grad():
        for p in objective.projector.parameters():
            p.add_(1.0)
    objective.after_update(0, 100, encoder)
    for now, then in zip(objective.teacher.parameters(), before, strict=True):
        torch.testing.assert_close(now, then + 0.1)


def test_what_does_not_fit_is_refused() -> None:
    assert OBJECTIVES["voco"] is VoCo
    objective, encoder, batch = make()
    assert objective.sizes([8, 48, 48]) == [(8, 16, 16)]
    with pytest.raises(ConfigError, match=r"data\.crop=\[8, 48, 48\]"):
        objective.sizes([8, 48, 32])
    batch.image = batch.image[..., :32]
    with pytest.raises(ConfigError, match="does not fit"):
        objective.step(batch, encoder)
    with pytest.raises(ConfigError, match="tells nothing"):
        make(grid=[1, 1, 1])
    with pytest.raises(ConfigError, match="multiple of the patch"):
        make(size=[8, 12, 16])
    flat = build_encoder({"name": "vit", "model": "vit_tiny_patch16_224", "depth": 1})
    with pytest.raises(ConfigError, match="3D"):
        VoCo(VoCo.Config(), flat)


def test_places_are_learnt() -> None:
    objective, encoder, _ = make(dropout=0.0, view=STILL, crops=2)
    objective.config.grid, objective.parent = [1, 2, 2], (8, 32, 32)
    first, last, _ = overfit(objective, encoder, [8, 32, 32], steps=60, images=16)
    assert last < 0.7 * first
