"""SimMIM: where mask tokens go, what counts, mask units in pixels."""

from __future__ import annotations

import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.encoders import Encoder
from medloom.pretrain.objectives.simmim import SimMIM
from medloom.pretrain.pixels import expand_mask

from .overfit import overfit
from .small import small_batch, small_encoder, small_objective

FAMILIES = [("vit", 2), ("vit3d", 3), ("convnet", 2), ("swin", 2), ("vit_any", 2), ("vit_any", 3)]


def made(family: str, **changes: object) -> tuple[SimMIM, Encoder]:
    encoder = small_encoder(family)
    objective = small_objective("simmim", encoder, **changes)
    assert isinstance(objective, SimMIM)
    return objective, encoder


@pytest.mark.parametrize(("family", "ndim"), FAMILIES)
@torch.no_grad()
def test_hidden_pixels_never_reach_the_prediction(family: str, ndim: int) -> None:
    objective, encoder = made(family)
    encoder.eval()
    batch = small_batch(encoder, ndim)
    image = batch.image
    grid, patch = encoder.grid(image.shape[2:]), encoder.patch_of(ndim)
    hidden = objective.hidden(image, batch, encoder, None)
    whole = expand_mask(hidden, grid, patch)
    changed = torch.where(whole, torch.randn_like(image) * 9, image)
    before = objective.reconstruct(image, hidden, encoder)[0]
    assert torch.allclose(before, objective.reconstruct(changed, hidden, encoder)[0], atol=1e-5)
    visible = torch.where(whole, image, torch.randn_like(image) * 9)
    assert not torch.allclose(before, objective.reconstruct(visible, hidden, encoder)[0], atol=1e-2)


def test_mask_units_are_of_the_stated_pixels() -> None:
    objective, encoder = made("vit", mask_unit=[16, 16], mask_ratio=0.5)
    batch = small_batch(encoder, 2)
    hidden = objective.hidden(batch.image, batch, encoder, None).reshape(-1, 2, 2, 2, 2)
    assert torch.equal(hidden.any(4).any(2), hidden.all(4).all(2))
    assert torch.equal(hidden.flatten(1).sum(1), torch.full((4,), 8))
    wrong, _ = made("vit", mask_unit=[12, 12])
    with pytest.raises(ConfigError, match=r"mask_unit \[12, 12\].*\[8, 8\]"):
        wrong.step(batch, encoder)


@pytest.mark.parametrize(("family", "spatial"), [("vit", (32, 32)), ("vit3d", (16, 16, 16))])
def test_thirty_two_images_are_learnt(family: str, spatial: tuple[int, ...]) -> None:
    objective, encoder = made(family, mask_unit=[8] * len(spatial), mask_ratio=0.5)
    first, last, _ = overfit(objective, encoder, spatial, steps=100)
    assert last < 0.75 * first
