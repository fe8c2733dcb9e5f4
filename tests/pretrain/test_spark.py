"""SparK: hidden cells reach nothing, mask tokens fill them, the plain variant, what is refused."""

from __future__ import annotations

import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.encoders import Encoder
from medloom.pretrain.objectives.spark import SparK
from medloom.pretrain.pixels import expand_mask

from .overfit import overfit
from .small import small_batch, small_encoder, small_objective

NARROW: dict[str, dict[str, object]] = {
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]},
    "resnet10t": {"channels": [8, 16, 24, 32]},
}


def made(model: str = "convnext_atto", **changes: object) -> tuple[SparK, Encoder]:
    encoder = small_encoder("convnet", model=model, kwargs=NARROW[model])
    objective = small_objective("spark", encoder, **changes)
    assert isinstance(objective, SparK)
    return objective, encoder


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("model", NARROW)
@torch.no_grad()
def test_hidden_pixels_never_reach_the_prediction(model: str, sparse: bool) -> None:
    objective, encoder = made(model, sparse=sparse)
    batch = small_batch(encoder, 2)
    image = batch.image
    hidden = objective.hidden(image, batch, encoder, None)
    whole = expand_mask(hidden, encoder.grid(image.shape[2:]), encoder.patch_size)
    changed = torch.where(whole, torch.randn_like(image) * 9, image)
    before = objective.reconstruct(image, hidden, encoder)[0]
    assert torch.equal(before, objective.reconstruct(changed, hidden, encoder)[0])
    visible = torch.where(whole, image, torch.randn_like(image) * 9)
    assert not torch.allclose(before, objective.reconstruct(visible, hidden, encoder)[0], atol=1e-2)


@torch.no_grad()
def test_hidden_places_of_every_map_hold_its_token() -> None:
    objective, encoder = made()
    objective.densify = torch.nn.ModuleList(torch.nn.Identity() for _ in objective.densify)
    batch = small_batch(encoder, 2)
    grid = encoder.grid(batch.image.shape[2:])
    hidden = objective.hidden(batch.image, batch, encoder, None)
    pyramid = encoder(batch.image, pyramid=True).pyramid
    for maps, filled, token in zip(
        pyramid, objective.filled(pyramid, hidden, grid), objective.tokens, strict=True
    ):
        cell = [s // g for s, g in zip(maps.shape[2:], grid, strict=True)]
        whole = expand_mask(hidden, grid, cell).expand_as(maps)
        assert torch.equal(filled[~whole], maps[~whole])
        assert torch.equal(filled[whole], token.expand_as(maps)[whole])


def test_all_but_the_finest_map_are_made_dense() -> None:
    objective, _ = made()
    kinds = [type(module).__name__ for module in objective.densify]
    assert kinds[0] == "Identity" and set(kinds[1:]) == {"Conv2d"}
    plain, _ = made(sparse=False)
    assert not any(name.startswith(("tokens", "densify")) for name, _ in plain.named_parameters())


@pytest.mark.parametrize("sparse", [True, False])
def test_thirty_two_images_are_learnt(sparse: bool) -> None:
    objective, encoder = made(sparse=sparse, mask_ratio=0.25)
    first, last, _ = overfit(objective, encoder, (64, 64), steps=50, lr=1e-2)
    assert last < 0.8 * first


def test_a_transformer_is_refused_with_the_mend() -> None:
    with pytest.raises(ConfigError, match=r"spark with encoder vit: .*objective\.name=mae"):
        small_objective("spark", small_encoder("vit"))
