"""Crops of which the trained encoder computes a part of the patches (FLIP, arXiv 2212.00794)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.encoders import Encoder, build_encoder
from medloom.pretrain.objectives import OBJECTIVES, Batch, Objective
from medloom.pretrain.objectives import crops as views
from medloom.pretrain.views import CropConfig

from .overfit import blobs
from .small import SMALL_OBJECTIVES

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3}
ENCODERS: dict[str, tuple[dict[str, Any], int]] = {
    "vit": ({"name": "vit", "model": "vit_tiny_patch16_224", "patch_size": 8, "in_channels": 1, **SMALL}, 2),
    "vit3d": ({"name": "vit3d", "patch_size": [8, 8, 8], **SMALL}, 3),
}


def made(name: str, key: str, visible: float) -> tuple[Objective, Encoder, Batch]:
    """An objective of two crops of 32 pixels, or 16 voxels, its encoder and a batch."""
    torch.manual_seed(0)
    section, ndim = ENCODERS[key]
    encoder = build_encoder(section)
    side = 32 if ndim == 2 else 16
    crops = [CropConfig(name="global", count=2, size=[side] * ndim, scale=[0.5, 1.0], visible=visible)]
    cls = OBJECTIVES[name]
    objective = cls(cls.Config(**{**SMALL_OBJECTIVES[name], "crops": crops}), encoder)
    image = blobs(4, [side] * ndim)
    return objective, encoder, Batch(image=image, position=torch.arange(4) + 5, seed=1, steps=100)


@pytest.mark.parametrize("key", ENCODERS)
@pytest.mark.parametrize("name", ["simclr", "mocov3", "lejepa", "dino"])
def test_the_trained_encoder_computes_half_of_the_patches_and_a_teacher_all(name: str, key: str) -> None:
    objective, encoder, batch = made(name, key, 0.5)
    lengths: dict[str, set[int]] = {"student": set(), "teacher": set()}
    blocks = "model.blocks.0" if key == "vit" else "blocks.0"
    slow = getattr(getattr(objective, "teacher", None), "encoder", None)
    for who, network in (("student", encoder), ("teacher", slow)):
        if network is not None:
            block = network.get_submodule(blocks).norm1
            block.register_forward_hook(lambda _, x, __, who=who: lengths[who].add(x[0].shape[1]))
    output = objective.step(batch, encoder)
    output.loss.backward()
    whole = 16 if key == "vit" else 8
    prefix = lengths["student"].pop() - whole // 2
    assert not lengths["student"] and 0 <= prefix <= 5  # class and register tokens
    assert lengths["teacher"] == ({whole + prefix} if slow is not None else set())
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)


@pytest.mark.parametrize("key", ENCODERS)
def test_pooled_features_are_those_of_the_patches_that_are_seen(key: str) -> None:
    objective, encoder, batch = made("simclr", key, 0.25)
    groups = views.make(batch, objective.crops)  # type: ignore[arg-type]
    keep = views.seen(groups[0], encoder, batch)
    assert keep is not None and keep.shape == (8, (16 if key == "vit" else 8) // 4)
    assert not torch.equal(keep[:4], keep[4:]), "both crops of an image hide the same places"
    expected = encoder(groups[0].image, keep).pooled.view(2, 4, -1)
    torch.testing.assert_close(views.pooled(groups, encoder, batch), expected)
    whole = torch.stack([encoder(groups[0].of(name)).pooled for name in groups[0].names])
    torch.testing.assert_close(views.pooled(groups, encoder), whole)


def test_the_patches_are_drawn_from_the_place_in_the_order_alone() -> None:
    objective, encoder, batch = made("simclr", "vit", 0.5)
    group = views.make(batch, objective.crops)[0]  # type: ignore[arg-type]
    keep = views.seen(group, encoder, batch)
    alone = Batch(image=batch.image[2:3], position=batch.position[2:3], seed=1, steps=100)
    single = views.seen(views.make(alone, objective.crops)[0], encoder, alone)  # type: ignore[arg-type]
    assert keep is not None and single is not None
    assert torch.equal(single, keep[[2, 6]])


def test_all_patches_and_no_keep_are_one() -> None:
    objective, encoder, batch = made("simclr", "vit", 1.0)
    assert views.seen(views.make(batch, objective.crops)[0], encoder, batch) is None  # type: ignore[arg-type]


def test_what_cannot_leave_patches_out_says_so() -> None:
    net = build_encoder({"name": "convnet", "model": "convnext_atto", "in_channels": 1})
    crop = CropConfig(size=[64, 64], visible=0.5)
    with pytest.raises(ConfigError, match="encoder convnet cannot compute a part"):
        OBJECTIVES["simclr"](OBJECTIVES["simclr"].Config(crops=[crop]), net)
    with pytest.raises(ConfigError, match="visible is for dino"):
        made("dinov2", "vit", 0.5)
    with pytest.raises(ConfigError, match="at least one must stay visible"):
        made("simclr", "vit", 0.01)
    with pytest.raises(ConfigError, match=r"crops\.visible is 0"):
        CropConfig(visible=0)
