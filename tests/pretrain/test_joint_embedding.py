"""SimCLR, MoCo v3 and LeJEPA in 2D and 3D: views, gradients, teachers, refusals, learning by heart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.encoders import Encoder, build_encoder
from medloom.pretrain.objectives import OBJECTIVES, Batch, Objective
from medloom.pretrain.objectives.mocov3 import MoCoV3
from medloom.pretrain.views import CropConfig, ViewConfig

from .overfit import blobs, overfit

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3}
ENCODERS: dict[str, tuple[dict[str, Any], int]] = {
    "vit": ({"name": "vit", "model": "vit_tiny_patch16_224", "patch_size": 8, "in_channels": 1, **SMALL}, 2),
    "convnext": ({"name": "convnet", "model": "convnext_atto", "in_channels": 1}, 2),
    "vit3d": ({"name": "vit3d", "patch_size": [8, 8, 8], **SMALL}, 3),
}
HEADS: dict[str, dict[str, Any]] = {
    "simclr": {"hidden_dim": 64, "out_dim": 32},
    "mocov3": {"hidden_dim": 64, "out_dim": 32},
    "lejepa": {"hidden_dim": 64, "out_dim": 16, "directions": 64},
}


def crops(name: str, ndim: int, side: int, small: int = 0, noise: float = 0.0) -> list[CropConfig]:
    """Two crops of `side`, for LeJEPA called global, and two of `small` where it is not 0."""
    view = ViewConfig(noise=noise)
    large = CropConfig(name="global", count=2, size=[side] * ndim, scale=[0.5, 1.0], view=view)
    if name != "lejepa" or not small:
        return [large]
    return [CropConfig(name="local", count=2, size=[small] * ndim, scale=[0.2, 0.5], view=view), large]


def make(name: str, key: str, batch: int = 4, **config: Any) -> tuple[Objective, Encoder, Batch]:
    """A small objective, its encoder and a batch of smooth images a little larger than the views."""
    torch.manual_seed(0)
    section, ndim = ENCODERS[key]
    encoder = build_encoder(section)
    side = 64 if key == "convnext" else 16
    given = {"crops": crops(name, ndim, side, side // 2), **HEADS[name], **config}
    cls = OBJECTIVES[name]
    objective = cls(cls.Config(**given), encoder)
    image = blobs(batch, [side * 9 // 8] * ndim)
    return objective, encoder, Batch(image=image, position=torch.arange(batch) + 5, seed=1, steps=100)


@pytest.mark.parametrize("key", ENCODERS)
@pytest.mark.parametrize("name", HEADS)
def test_a_step_trains_everything_and_gives_true_views(name: str, key: str) -> None:
    objective, encoder, batch = make(name, key)
    output = objective.step(batch, encoder)
    count = 4 if name == "lejepa" else 2
    assert output.loss.ndim == 0 and output.loss.isfinite()
    assert output.views is not None and output.views.shape == (count, 4, encoder.embed_dim)
    assert output.features.shape == (4, encoder.embed_dim)
    assert any(torch.equal(output.features, view) for view in output.views)
    assert not any(t.requires_grad for t in (output.features, output.views, *output.terms.values()))
    output.loss.backward()
    for module in (encoder, objective):
        for path, parameter in module.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.isfinite().all(), path
            else:
                assert parameter.grad is None
    heads = [p for p in objective.parameters() if p.requires_grad]
    assert all(bool(p.grad.any()) for p in heads if p.grad is not None)


@pytest.mark.parametrize("key", ["vit", "vit3d"])
@pytest.mark.parametrize("name", HEADS)
def test_the_same_keys_give_the_same_loss_and_others_another(name: str, key: str) -> None:
    objective, encoder, batch = make(name, key)
    first = float(objective.step(batch, encoder).loss.detach())
    torch.manual_seed(99)
    assert float(objective.step(batch, encoder).loss.detach()) == first
    batch.seed = 2
    assert float(objective.step(batch, encoder).loss.detach()) != first


@pytest.mark.parametrize("name", HEADS)
def test_sizes_are_what_meets_the_encoder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, encoder, batch = make(name, "vit")
    seen: list[tuple[int, ...]] = []
    forward = encoder.forward

    def spy(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(tuple(x.shape[2:]))
        return forward(x, *args, **kwargs)

    monkeypatch.setattr(encoder, "forward", spy)
    objective.step(batch, encoder)
    assert sorted(seen) == sorted(objective.sizes((18, 18)))  # each size met once: equal sizes share a pass
    panel = objective.panel(batch, encoder)
    assert torch.equal(panel["input"], batch.image) and {tuple(x.shape[2:]) for x in panel.values()} >= set(
        seen
    )


@pytest.mark.parametrize(("name", "sizes"), [("simclr", 1), ("mocov3", 1), ("lejepa", 2)])
@pytest.mark.parametrize("ndim", [2, 3])
def test_without_crops_the_presets_are_taken(name: str, sizes: int, ndim: int) -> None:
    key = "vit" if ndim == 2 else "vit3d"
    cls = OBJECTIVES[name]
    objective = cls(cls.Config(**HEADS[name]), build_encoder(ENCODERS[key][0]))
    found = objective.sizes([256] * ndim)
    assert found[0] == ((224, 224) if ndim == 2 else (96, 96, 96)) and len(found) == sizes


@pytest.mark.parametrize("name", HEADS)
def test_wrong_crops_are_refused(name: str) -> None:
    one = CropConfig(name="other", count=1, size=[16, 16])
    with pytest.raises(ConfigError, match=r"objective\.crops"):
        make(name, "vit", crops=[one])
    with pytest.raises(ConfigError, match="2 sides"):
        make(name, "vit3d", crops=crops(name, 2, 16))
    with pytest.raises(ConfigError, match="multiple of the patch"):
        make(name, "vit", crops=crops(name, 2, 20))


def test_the_key_encoder_follows_and_the_stem_stands_still() -> None:
    objective, encoder, _ = make("mocov3", "vit", momentum=0.9)
    assert isinstance(objective, MoCoV3)
    frozen = [name for name, p in encoder.named_parameters() if not p.requires_grad]
    assert frozen == ["model.patch_embed.proj.weight", "model.patch_embed.proj.bias"]
    slow = dict(objective.teacher.named_parameters())
    before = {name: p.clone() for name, p in slow.items()}
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(1.0)
    objective.after_update(0, 100, encoder)  # momentum 0.9 at step 0: a tenth of the way
    for name, _ in encoder.named_parameters():
        torch.testing.assert_close(slow[f"encoder.{name}"], before[f"encoder.{name}"] + 0.1)
    moved = {name: p.clone() for name, p in slow.items()}
    objective.after_update(100, 100, encoder)  # momentum 1 at the end
    assert all(torch.equal(p, moved[name]) for name, p in slow.items())
    assert not any(p.requires_grad for p in slow.values())


def test_one_encoder_of_pictures_and_volumes_gets_crops_of_both_and_two_still_stems() -> None:
    section = {"name": "vit_any", "patch_size": [8, 8, 8], "patch_size_2d": [8, 8], **SMALL}
    encoder = build_encoder(section)
    both = [*crops("mocov3", 2, 16), *crops("mocov3", 3, 24)]
    objective = MoCoV3(MoCoV3.Config(crops=both, **HEADS["mocov3"]), encoder)
    assert objective.sizes([18, 18]) == [(16, 16)] and objective.sizes([30, 30, 30]) == [(24, 24, 24)]
    frozen = {name for name, p in encoder.named_parameters() if not p.requires_grad}
    assert frozen == {f"{stem}.proj.{kind}" for stem in ("patch_embed", "patch_embed_2d")
                      for kind in ("weight", "bias")}  # fmt: skip
    for ndim in (2, 3):
        image = blobs(4, [32] * ndim)
        loss = objective.step(Batch(image=image, position=torch.arange(4), seed=0), encoder).loss
        loss.backward()
        assert loss.isfinite()


def test_convolutions_learn_their_stem() -> None:
    _, encoder, _ = make("mocov3", "convnext")
    assert all(p.requires_grad for p in encoder.parameters())
    _, encoder, _ = make("mocov3", "vit", freeze_stem=False)
    assert all(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize(
    ("name", "key", "share"),
    [("simclr", "vit", 0.3), ("mocov3", "vit", 0.6), ("lejepa", "vit", 0.5), ("simclr", "vit3d", 0.3),
     ("lejepa", "vit3d", 0.5)],
)  # fmt: skip
def test_thirty_two_images_are_learnt_by_heart(name: str, key: str, share: float) -> None:
    objective, encoder, batch = make(name, key)
    first, last, _ = overfit(objective, encoder, batch.image.shape[2:], steps=60)
    assert last < share * first
