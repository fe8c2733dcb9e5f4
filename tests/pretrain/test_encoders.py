"""What every encoder of transformers and timm promises: shapes, keep, pyramid, any size, groups, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.encoders import Encoder, build_encoder
from medloom.pretrain.encoders.base import depths_of_pyramid
from medloom.pretrain.encoders.positions import sincos

SMALL = {"depth": 4, "embed_dim": 48, "num_heads": 3}
WINDOWS = {"depths": [1, 1, 2, 1], "embed_dim": 12, "num_heads": [1, 2, 2, 2], "window_size": 4}
# key -> (config, spatial size that fits)
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "vit": ({"name": "vit", "model": "vit_tiny_patch16_224", **SMALL}, (64, 48)),
    "registers": ({"name": "vit", "model": "vit_small_patch14_reg4_dinov2", **SMALL}, (56, 42)),
    "mean-pooled": ({"name": "vit", "model": "vit_base_patch16_rpn_224", **SMALL}, (64, 48)),
    "eva": ({"name": "vit", "model": "eva02_tiny_patch14_224", **SMALL}, (56, 42)),
    "dinov3": ({"name": "vit", "model": "vit_small_patch16_dinov3", **SMALL}, (64, 48)),
    "mixed-rope": ({"name": "vit", "model": "vit_small_patch16_rope_mixed_224", **SMALL}, (64, 48)),
    "convnext": ({"name": "convnet", "model": "convnext_atto", "in_channels": 1}, (64, 96)),
    "resnet": ({"name": "convnet", "model": "resnet18", "in_channels": 4}, (64, 96)),
    "vit3d": ({"name": "vit3d", "size": "tiny", "patch_size": [4, 8, 8], **SMALL}, (8, 24, 16)),
    "vit3d-registers": ({"name": "vit3d", "size": "tiny", "patch_size": [8, 8, 8], "registers": 3,
                         "layer_scale": 1e-2, "in_channels": 2, **SMALL}, (16, 16, 24)),
    "vit3d-rope": ({"name": "vit3d", "patch_size": [8, 8, 8], "positions": "rope", "registers": 1, **SMALL},
                   (16, 16, 24)),
    "vit3d-learnt": ({"name": "vit3d_learnt", "patch_size": [8, 8, 8], "img_size": [16, 16, 16], **SMALL},
                     (16, 16, 24)),
    "vit3d-learnt-plain": ({"name": "vit3d_learnt", "patch_size": [8, 8, 8], "img_size": [16, 16, 24],
                            "class_token": False, "pool": "mean", "registers": 2, **SMALL}, (16, 16, 24)),
    "vit_any": ({"name": "vit_any", "patch_size": [4, 8, 8], "patch_size_2d": [8, 8], **SMALL},
                (8, 24, 16)),
    "vit_any-2d": ({"name": "vit_any", "patch_size": [4, 8, 8], "patch_size_2d": [8, 8], "registers": 2,
                    **SMALL}, (24, 16)),
    "swin": ({"name": "swin", "img_size": 64, "kwargs": WINDOWS}, (64, 96)),
    "swinv2": ({"name": "swin", "model": "swinv2_tiny_window8_256", "img_size": 64, "in_channels": 1,
                "kwargs": WINDOWS}, (96, 64)),
}  # fmt: skip
TIMM = [key for key, (config, _) in CASES.items() if config["name"] in ("vit", "convnet", "swin")]
TRANSFORMERS = [
    key for key, (config, _) in CASES.items() if config["name"] in ("vit", "vit3d", "vit3d_learnt", "vit_any")
]


def make(key: str) -> tuple[Encoder, torch.Tensor]:
    """A small encoder in eval mode and two images for it."""
    torch.manual_seed(0)
    config, spatial = CASES[key]
    encoder = build_encoder(config).eval()
    return encoder, torch.randn(2, encoder.in_channels, *spatial)


@pytest.mark.parametrize("key", CASES)
@torch.no_grad()
def test_shapes_are_those_promised(key: str) -> None:
    encoder, x = make(key)
    features = encoder(x, pyramid=True)
    n = torch.Size(encoder.grid(x.shape[2:])).numel()
    assert features.pooled.shape == (2, encoder.embed_dim)
    assert features.tokens.shape == (2, n, encoder.embed_dim)
    assert features.grid == encoder.grid(x.shape[2:])
    levels = features.pyramid
    assert levels is not None and all(level.shape[0] == 2 and level.ndim == x.ndim for level in levels)
    assert levels[-1].shape[2:] == features.grid
    assert torch.allclose(levels[-1].flatten(2).transpose(1, 2), features.tokens, atol=1e-5)
    assert encoder(x).pyramid is None
    assert x.ndim - 2 in encoder.axes and len(encoder.patch_of(x.ndim - 2)) == x.ndim - 2
    assert len(encoder.patch_size) == encoder.ndim
    assert encoder.get_parameter(encoder.stem).shape[1] == encoder.in_channels


@pytest.mark.parametrize("key", TRANSFORMERS)
@torch.no_grad()
def test_keeping_all_tokens_is_the_plain_forward(key: str) -> None:
    encoder, x = make(key)
    plain = encoder(x)
    n = plain.tokens.shape[1]
    same = encoder(x, keep=torch.arange(n).expand(2, -1))
    assert torch.allclose(same.tokens, plain.tokens, atol=1e-5)
    assert torch.allclose(same.pooled, plain.pooled, atol=1e-5)
    assert same.grid is None


@pytest.mark.parametrize("key", TRANSFORMERS)
@torch.no_grad()
def test_the_order_of_kept_tokens_does_not_matter(key: str) -> None:
    encoder, x = make(key)
    n = encoder(x).tokens.shape[1]
    generator = torch.Generator().manual_seed(1)
    keep = torch.stack([torch.randperm(n, generator=generator)[: n // 2] for _ in range(2)])
    turned = keep.flip(1)
    a, b = encoder(x, keep=keep), encoder(x, keep=turned)
    assert torch.allclose(a.tokens, b.tokens.flip(1), atol=1e-5)
    assert torch.allclose(a.pooled, b.pooled, atol=1e-5)


@pytest.mark.parametrize("key", TRANSFORMERS)
@torch.no_grad()
def test_hidden_patches_do_not_reach_the_visible_ones(key: str) -> None:
    encoder, x = make(key)
    patch = encoder.patch_of(x.ndim - 2)
    n = encoder(x).tokens.shape[1]
    keep = torch.arange(1, n).expand(2, -1)
    changed = x.clone()
    changed[(..., *(slice(0, p) for p in patch))] += 5.0  # patch 0 only
    assert torch.equal(encoder(x, keep=keep).tokens, encoder(changed, keep=keep).tokens)
    assert not torch.allclose(encoder(x).tokens, encoder(changed).tokens, atol=1e-3)


@pytest.mark.parametrize("key", CASES)
@torch.no_grad()
def test_any_multiple_of_the_patch_is_taken_and_others_are_refused(key: str) -> None:
    encoder, x = make(key)
    larger = [2 * s if i == 0 else s for i, s in enumerate(x.shape[2:])]
    assert encoder(torch.randn(1, encoder.in_channels, *larger)).grid == encoder.grid(larger)
    odd = [*x.shape[2:-1], x.shape[-1] + 1]
    with pytest.raises(ConfigError, match=f"{odd[-1]} is not a multiple of the patch .*crop"):
        encoder(torch.randn(1, encoder.in_channels, *odd))
    with pytest.raises(ConfigError, match="channels"):
        encoder(torch.randn(1, encoder.in_channels + 1, *x.shape[2:]))
    with pytest.raises(ConfigError, match="axes"):
        encoder(x[..., 0] if x.ndim - 3 not in encoder.axes else x[..., 0, 0])


@pytest.mark.parametrize("key", TIMM)
@torch.no_grad()
def test_pooled_is_what_timm_gives(key: str) -> None:
    encoder, x = make(key)
    assert torch.allclose(encoder(x).pooled, encoder.get_submodule("model")(x), atol=1e-5)


@pytest.mark.parametrize("key", CASES)
def test_layer_groups_hold_every_parameter_once_and_begin_with_the_stem(key: str) -> None:
    encoder, _ = make(key)
    groups = encoder.layer_groups()
    names = [name for group in groups for name, _ in group]
    assert sorted(names) == sorted(name for name, _ in encoder.named_parameters())
    assert encoder.stem in [name for name, _ in groups[0]]
    if key in TRANSFORMERS:
        assert len(groups) == 4 + 2
        assert all(f"blocks.{i}." in name for i in range(4) for name, _ in groups[i + 1])


@pytest.mark.parametrize(
    "key", ["vit", "dinov3", "convnext", "vit3d-registers", "vit3d-rope", "vit_any", "vit_any-2d", "swin"]
)
def test_gradients_and_bfloat16(key: str) -> None:
    encoder, x = make(key)
    encoder.train()
    keep = torch.tensor([[0, 2], [1, 3]]) if encoder.supports_keep else None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encoder(x, keep=keep)
    assert torch.isfinite(features.tokens).all()
    (features.tokens.float().square().mean() + features.pooled.float().square().mean()).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_keep_and_pyramid_are_refused_where_they_make_no_sense() -> None:
    encoder, x = make("convnext")
    with pytest.raises(ConfigError, match="mask its input"):
        encoder(x, keep=torch.tensor([[0], [0]]))
    encoder, x = make("vit3d")
    with pytest.raises(ConfigError, match="pyramid"):
        encoder(x, keep=torch.tensor([[0], [0]]), pyramid=True)


@torch.no_grad()
def test_a_flat_volume_in_3d_is_the_picture_in_2d() -> None:
    torch.manual_seed(0)
    volume = build_encoder({"name": "vit3d", "patch_size": [1, 16, 16], **SMALL, "registers": 0}).eval()
    picture = build_encoder(
        {"name": "vit", "model": "vit_tiny_patch16_224", "img_size": 64, "in_channels": 1, **SMALL}
    ).eval()
    weights = {f"model.{k}": v for k, v in volume.state_dict().items()}
    weights["model.patch_embed.proj.weight"] = weights["model.patch_embed.proj.weight"].squeeze(2)
    positions = torch.zeros(1, 17, 48)
    positions[0, 1:] = sincos((1, 4, 4), 48)
    picture.load_state_dict(weights | {"model.pos_embed": positions})
    x = torch.randn(2, 1, 64, 64)
    flat, plain = volume(x[:, :, None]), picture(x)
    assert torch.allclose(flat.tokens, plain.tokens, atol=1e-5)
    assert torch.allclose(flat.pooled, plain.pooled, atol=1e-5)


@torch.no_grad()
def test_at_its_own_size_positions_are_timm_s_own() -> None:
    fixed = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0, **SMALL).eval()
    encoder = build_encoder({"name": "vit", "model": "vit_tiny_patch16_224", "img_size": 64, **SMALL}).eval()
    encoder.get_submodule("model").load_state_dict(fixed.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(encoder(x).pooled, fixed(x))


def test_sincos_is_its_closed_form() -> None:
    table = sincos((2, 3, 4), 14)  # 2 frequencies an axis, 2 channels left over
    assert table.shape == (24, 14)
    row = table[1 * 12 + 2 * 4 + 3]  # index (1, 2, 3)
    angles = [torch.tensor([i * 1.0, i / 100.0]) for i in (1, 2, 3)]
    expected = torch.cat([torch.cat([a.sin(), a.cos()]) for a in angles] + [torch.zeros(2)])
    assert torch.allclose(row, expected, atol=1e-6)
    assert len(sincos((4, 4, 4), 48).unique(dim=0)) == 64
    with pytest.raises(ValueError, match="at least 6"):
        sincos((2, 2, 2), 5)


def test_pyramids_of_transformers_end_at_the_last_block() -> None:
    assert depths_of_pyramid(12) == [2, 5, 8, 11]
    assert depths_of_pyramid(24) == [5, 11, 17, 23]
    assert depths_of_pyramid(1) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "vitt"}, "did you mean vit"),
        ({"name": "vit", "modle": "x"}, "did you mean model"),
        ({"name": "vit", "model": "vit_tiny_patch16_225"}, "did you mean vit_tiny_patch16_224"),
        ({"name": "vit", "model": "convnext_atto"}, "cannot build|convnet"),
        ({"name": "vit", "model": "vit_tiny_patch16_224", "kwargs": {"no_such": 1}}, "no_such"),
        ({"name": "vit", "kwargs": {"in_chans": 2}}, "in_chans is set by medloom"),
        ({"name": "convnet", "model": "swin_tiny_patch4_window7_224"}, "not a convolutional"),
        ({"name": "vit3d", "size": "smal"}, "did you mean small"),
        ({"name": "vit3d", "patch_size": [8, 8]}, "three sides"),
        ({"name": "vit3d", "embed_dim": 50, "num_heads": 4}, "multiple of 4 heads"),
        ({"name": "vit3d", "positions": "ropes"}, "did you mean rope"),
        ({"name": "vit3d", "positions": "both", "embed_dim": 48, "num_heads": 12}, "48 / 12 heads is 4"),
        ({"name": "vit_any", "patch_size_2d": [8, 8, 8]}, "two sides"),
        ({"name": "swin", "model": "vit_tiny_patch16_224"}, "strict_img_size|choose a swin"),
        ({"name": "swin", "kwargs": {"strict_img_size": True}}, "strict_img_size is set by medloom"),
        ({"model": "x"}, "name"),
    ],
)
def test_wrong_configurations_are_refused_with_the_mend(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_encoder(config)
