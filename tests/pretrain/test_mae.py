"""The masked autoencoder: what it sees, what counts, what it learns, in 2D and 3D, transformer and CNN."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.diagnostics import feature_std, rankme
from medloom.pretrain.encoders import Encoder, build_encoder
from medloom.pretrain.losses.reconstruction import normalise_patches
from medloom.pretrain.objectives import OBJECTIVES, Batch
from medloom.pretrain.objectives.mae import MAE
from medloom.pretrain.objectives.masked import Prediction
from medloom.pretrain.optim import adamw, param_groups
from medloom.pretrain.pixels import expand_mask, patchify
from medloom.pretrain.views import ViewConfig

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3}
ENCODERS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "vit": ({"name": "vit", "model": "vit_tiny_patch16_224", "in_channels": 1, **SMALL}, (64, 48)),
    "mean-pooled": ({"name": "vit", "model": "vit_base_patch16_rpn_224", **SMALL}, (64, 48)),
    "dinov3": ({"name": "vit", "model": "vit_small_patch16_dinov3", **SMALL}, (64, 48)),
    "convnext": ({"name": "convnet", "model": "convnext_atto", "in_channels": 1}, (64, 96)),
    "vit3d": ({"name": "vit3d", "patch_size": [4, 8, 8], **SMALL}, (8, 24, 16)),
}
STILL = ViewConfig(flip=0.0, affine=0.0)


def make(key: str, **config: Any) -> tuple[MAE, Encoder, Batch]:
    """A small objective, its encoder and a batch of three smooth random images."""
    torch.manual_seed(0)
    section, spatial = ENCODERS[key]
    encoder = build_encoder(section)
    settings = {"decoder_dim": 48, "decoder_depth": 1, "decoder_heads": 3, "view": STILL, **config}
    objective = MAE(MAE.Config(**settings), encoder)
    image = torch.randn(3, encoder.in_channels, *spatial)
    return objective, encoder, Batch(image=image, position=torch.tensor([4, 9, 123]), seed=1)


@pytest.mark.parametrize("key", ENCODERS)
def test_a_step_trains_everything_and_only_what_it_should(key: str) -> None:
    objective, encoder, batch = make(key)
    output = objective.step(batch, encoder)
    assert output.loss.ndim == 0 and torch.isfinite(output.loss)
    assert float(output.terms["reconstruction"]) == pytest.approx(float(output.loss.detach()))
    assert output.features.shape == (3, encoder.embed_dim)
    assert not output.features.requires_grad and not output.terms["reconstruction"].requires_grad
    output.loss.backward()
    # Distributed training takes a parameter without a gradient for an error: every one must have one.
    for module in (encoder, objective):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert batch.image.grad is None
    assert not any(name.startswith("encoder") for name, _ in objective.named_parameters())


@pytest.mark.parametrize("key", ENCODERS)
def test_the_same_position_gives_the_same_loss_and_another_seed_another(key: str) -> None:
    objective, encoder, batch = make(key, view=ViewConfig(affine=0.5))
    objective.eval()
    encoder.eval()
    first = float(objective.step(batch, encoder).loss.detach())
    torch.manual_seed(99)
    assert float(objective.step(batch, encoder).loss.detach()) == first
    other = Batch(image=batch.image, position=batch.position, seed=2)
    assert float(objective.step(other, encoder).loss.detach()) != first


@pytest.mark.parametrize("key", ["vit", "dinov3", "vit3d"])
def test_the_encoder_computes_visible_tokens_only(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, encoder, batch = make(key, mask_ratio=0.75)
    seen: list[int] = []
    forward = encoder.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        features = forward(*args, **kwargs)
        seen.append(features.tokens.shape[1])
        return features

    monkeypatch.setattr(encoder, "forward", spy)
    objective.step(batch, encoder)
    assert seen == [torch.Size(encoder.grid(batch.image.shape[2:])).numel() // 4]


@pytest.mark.parametrize("key", ENCODERS)
@torch.no_grad()
def test_hidden_pixels_never_reach_the_prediction(key: str) -> None:
    objective, encoder, batch = make(key, mask_ratio=0.5)
    objective.eval()
    encoder.eval()
    hidden = objective.hidden(batch.image, batch, encoder, None)
    whole = expand_mask(hidden, encoder.grid(batch.image.shape[2:]), encoder.patch_size)
    changed = torch.where(whole, torch.randn_like(batch.image) * 7, batch.image)
    before = objective.reconstruct(batch.image, hidden, encoder)[0]
    assert torch.equal(before, objective.reconstruct(changed, hidden, encoder)[0])


@pytest.mark.parametrize("norm_pixels", [True, False])
@pytest.mark.parametrize("key", ["vit", "convnext", "vit3d"])
def test_the_panel_is_in_the_units_of_the_input(
    key: str, norm_pixels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, encoder, batch = make(key, norm_pixels=norm_pixels)
    batch.image = batch.image * 30 + 200
    target = patchify(batch.image, encoder.patch_size)
    perfect = normalise_patches(target) if norm_pixels else target
    pooled = torch.zeros(3, encoder.embed_dim)
    monkeypatch.setattr(objective, "reconstruct", lambda *_: Prediction(perfect, pooled))
    panel = objective.panel(batch, encoder)
    assert list(panel) == ["input", "masked", "reconstruction"]
    assert torch.equal(panel["input"], batch.image)
    assert torch.allclose(panel["reconstruction"], batch.image, atol=1e-2)
    hidden = panel["masked"] == 0
    assert torch.equal(panel["masked"][~hidden], batch.image[~hidden])
    assert float(hidden.double().mean()) == pytest.approx(0.75, abs=0.1)


@torch.no_grad()
def test_the_panel_keeps_visible_patches_as_they_are() -> None:
    objective, encoder, batch = make("vit")
    panel = objective.panel(batch, encoder)
    visible = panel["masked"] != 0
    assert torch.equal(panel["reconstruction"][visible], batch.image[visible])
    assert not torch.allclose(panel["reconstruction"], batch.image)


def train(key: str, images: torch.Tensor, steps: int, **config: Any) -> tuple[list[float], MAE, Encoder]:
    """Losses of training on one fixed batch, with new masks in each step."""
    objective, encoder, _ = make(key, **config)
    groups = param_groups(encoder, objective.named_parameters(), weight_decay=0.0)
    optimizer = adamw(groups, lr=3e-3, betas=[0.9, 0.95])
    losses = []
    for step in range(steps):
        position = torch.arange(len(images)) + step * len(images)
        loss = objective.step(Batch(image=images, position=position, seed=0), encoder).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, objective, encoder


def stripes(n: int, spatial: tuple[int, ...]) -> torch.Tensor:
    """n images [n, 1, *spatial], each a wave of its own direction and length: any part tells the rest."""
    generator = torch.Generator().manual_seed(5)
    axes = torch.meshgrid(*(torch.arange(s, dtype=torch.float32) for s in spatial), indexing="ij")
    waves = torch.rand(n, len(spatial), generator=generator) * 0.4
    phase = sum(w.reshape(-1, *[1] * len(spatial)) * axis for w, axis in zip(waves.T, axes, strict=True))
    return torch.sin(torch.as_tensor(phase))[:, None]


@pytest.mark.parametrize(("key", "spatial"), [("vit", (64, 64)), ("vit3d", (8, 32, 32))])
def test_sixteen_images_are_learnt_by_heart(key: str, spatial: tuple[int, ...]) -> None:
    losses, _, _ = train(key, stripes(16, spatial), 200, mask_ratio=0.5)
    first, last = losses[0], sum(losses[-10:]) / 10
    assert first > 0.8  # normalised targets have variance 1: nothing is known at first
    assert last < 0.4 * first


def test_a_convolutional_encoder_learns_too() -> None:
    losses, _, _ = train("convnext", stripes(8, (64, 64)), 70, mask_ratio=0.5)
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]


@torch.no_grad()
def test_a_constant_encoder_shows_as_collapse() -> None:
    objective, encoder, batch = make("vit", mask_ratio=0.5)
    healthy = objective.step(batch, encoder).features
    for name, parameter in encoder.named_parameters():
        if name.endswith("norm.weight") and "blocks" not in name:
            parameter.zero_()  # the last norm gives its bias alone
        if name == "model.norm.bias":
            parameter.copy_(torch.randn_like(parameter))
    collapsed = objective.step(batch, encoder).features
    assert feature_std(collapsed) == pytest.approx(0.0, abs=1e-6) and feature_std(healthy) > 1e-3
    assert rankme(collapsed) == pytest.approx(1.0, abs=1e-3) and rankme(healthy) > 1.01


@pytest.mark.parametrize("key", ["vit", "convnext", "vit3d"])
def test_bfloat16_gives_about_the_same_loss(key: str) -> None:
    objective, encoder, batch = make(key)
    objective.eval()
    encoder.eval()
    exact = objective.step(batch, encoder).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = objective.step(batch, encoder).loss
    assert rounded.dtype == torch.float32
    assert float(rounded.detach()) == pytest.approx(float(exact.detach()), rel=0.02)


def test_views_change_the_image_but_not_the_keys() -> None:
    objective, _, batch = make("vit", view=ViewConfig(flip=0.5, affine=0.0))
    batch = Batch(image=torch.randn(64, 1, 16, 16), position=torch.arange(64), seed=0)
    seen = objective.view(batch)
    same = (seen == batch.image).flatten(1).all(1)
    mirrored = (seen == batch.image.flip(-1)).flatten(1).all(1)
    assert torch.equal(same, ~mirrored) and 16 < int(same.sum()) < 48


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="decoder_dim 50"):
        make("vit", decoder_dim=50, decoder_heads=3)
    objective, encoder, batch = make("vit", mask_block=4)
    with pytest.raises(ConfigError, match="mask_block"):
        objective.step(batch, encoder)


def test_mask_blocks_hide_larger_pieces() -> None:
    objective, encoder, _ = make("vit", mask_block=2, mask_ratio=0.5)
    batch = Batch(image=torch.randn(2, 1, 64, 64), position=torch.tensor([0, 1]), seed=0)
    hidden = objective.hidden(batch.image, batch, encoder, None).reshape(2, 2, 2, 2, 2)
    assert torch.equal(hidden.any(4).any(2), hidden.all(4).all(2))
    assert torch.isfinite(objective.step(batch, encoder).loss)


def test_the_name_is_registered() -> None:
    assert OBJECTIVES["mae"] is MAE and MAE.Config().name == "mae"


@pytest.mark.parametrize("key", ["vit", "dinov3", "vit3d"])
@torch.no_grad()
def test_a_mask_of_nothing_is_the_plain_forward(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, encoder, batch = make(key, mask_ratio=0.0)
    encoder.eval()
    plain = encoder(batch.image)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(objective.decoder.embed, "forward", lambda x: seen.append(x) or x[..., :48])
    output = objective.step(batch, encoder)
    assert torch.allclose(output.features, plain.pooled, atol=1e-5)
    assert torch.allclose(seen[0], plain.tokens, atol=1e-5)


def half_empty(batch: Batch) -> Batch:
    """The batch with its left half cut away, as a face is, and its own black."""
    image = batch.image.clone()
    image[..., : image.shape[-1] // 2] = -9.0
    return Batch(image=image, position=batch.position, seed=batch.seed)


@pytest.mark.parametrize("key", ["vit", "vit3d"])
def test_empty_pixels_do_not_count(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prediction may say anything about air: neither the loss nor its gradient sees it."""
    for skip in (True, False):
        objective, encoder, batch = make(key, mask_ratio=0.5, norm_pixels=False, skip_air=skip)
        batch = half_empty(batch)
        air = torch.zeros_like(batch.image)
        air[..., : air.shape[-1] // 2 - 1] = 1.0  # a border of one voxel stays
        target = patchify(batch.image, encoder.patch_size)
        wrong = target + 3 * patchify(air, encoder.patch_size)
        pooled = torch.zeros(3, encoder.embed_dim)
        monkeypatch.setattr(objective, "reconstruct", lambda *_, w=wrong, p=pooled: Prediction(w, p))
        loss = float(objective.step(batch, encoder).loss)
        assert loss == 0.0 if skip else loss > 0.5


@pytest.mark.parametrize("key", ["vit", "vit3d"])
def test_the_mask_prefers_tissue(key: str) -> None:
    objective, encoder, batch = make(key, mask_ratio=0.5, foreground=1.0)
    batch = half_empty(batch)
    batch.image, batch.position = batch.image.repeat(10, *[1] * (batch.image.ndim - 1)), torch.arange(30)
    where = objective.tissue(batch.image, batch)
    grid = encoder.grid(batch.image.shape[2:])
    right = (torch.arange(torch.Size(grid).numel()) % grid[-1]) >= grid[-1] // 2
    aware = objective.hidden(batch.image, batch, encoder, where)
    blind = objective.hidden(batch.image, batch, encoder, None)
    assert torch.equal(aware.sum(1), blind.sum(1))
    assert float((aware & right).sum()) > float((blind & right).sum())
    assert bool((~aware & right).any(1).all()), "some of it stays visible"


def test_a_share_over_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective\.foreground is 2"):
        MAE.Config(foreground=2.0)
