"""Convolutional encoders and hybrids: the promises of every encoder, names of their libraries, inflation."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import timm
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.encoders import Encoder, Hide, build_encoder
from medloom.pretrain.encoders.sparse import sparse
from medloom.pretrain.weights import load_encoder, load_into, save_encoder
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

FLAT = {"depths": [1, 1, 2, 1], "dims": [8, 16, 24, 32]}
PRIMUS = {"name": "primus", "embed_dim": 48, "depth": 4, "num_heads": 2, "patch_size": [4, 8, 8]}
# key -> (config, spatial size that fits, strides of the pyramid). Maps that 3 × 3 × 3 convolutions meet are
# at least 3 deep: below that torch 2.15 gives gradients of uninitialised memory in bfloat16 on a CPU.
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...], list[tuple[int, ...]]]] = {
    "resenc": ({"name": "resenc", "features": [8, 8, 16], "blocks": [1, 1, 2], "kernels": [[1, 3, 3], 3, 3],
                "strides": [1, [1, 2, 2], 2]}, (8, 16, 24), [(1, 1, 1), (1, 2, 2), (2, 4, 4)]),
    "resenc-2d": ({"name": "resenc", "ndim": 2, "features": [8, 16], "blocks": [1, 1], "kernels": [3, 3],
                   "strides": [1, 2], "in_channels": 3}, (8, 12), [(1, 1), (2, 2)]),
    "segresnet": ({"name": "segresnet", "filters": 8, "blocks": [1, 1, 2], "in_channels": 2},
                  (16, 12, 16), [(1, 1, 1), (2, 2, 2), (4, 4, 4)]),
    "segresnet-2d": ({"name": "segresnet", "ndim": 2, "filters": 8, "blocks": [1, 1]}, (8, 12),
                     [(1, 1), (2, 2)]),
    "segresnet-batch": ({"name": "segresnet", "filters": 6, "blocks": [1, 2], "norm": "batch",
                         "rescale": [0.5, 0.5]}, (8, 8, 12), [(1, 1, 1), (2, 2, 2)]),
    "resnet3d": ({"name": "resnet3d", "depth": 18, "width": 0.125, "in_channels": 2}, (64, 32, 64),
                 [(2, 2, 2), (4, 4, 4), (8, 8, 8), (16, 16, 16), (32, 32, 32)]),
    "resnet3d-dilated": ({"name": "resnet3d", "depth": 10, "width": 0.125, "shortcut": "A", "dilated": True},
                         (32, 24, 16), [(2, 2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8), (8, 8, 8)]),
    "convnext3d": ({"name": "convnext3d", "kwargs": {**FLAT, "patch_size": 1}, "depth_strides": [1, 1, 2, 2]},
                   (8, 16, 24), [(1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 8, 8)]),
    "convnextv2-3d": ({"name": "convnext3d", "model": "convnextv2_atto", "in_channels": 2, "kernel_depth": 1,
                       "depth_strides": [1, 1, 1, 1], "kwargs": {**FLAT, "patch_size": 1}}, (2, 16, 24),
                      [(1, 1, 1), (1, 2, 2), (1, 4, 4), (1, 8, 8)]),
    "swin3d": ({"name": "swin3d", "feature_size": 12, "depths": [1, 2], "num_heads": [2, 3],
                "window": [2, 3, 3], "patch_size": [1, 2, 2]}, (8, 16, 24),
               [(1, 2, 2), (2, 4, 4), (4, 8, 8)]),
    "swin3d-residual": ({"name": "swin3d", "feature_size": 12, "depths": [1, 1], "num_heads": [2, 3],
                         "window": [3, 3, 3], "residual": True, "rescale": [2.0, 0.4, 0.0, 1.0]},
                        (16, 16, 24), [(2, 2, 2), (4, 4, 4), (8, 8, 8)]),
    "primus": ({**PRIMUS, "img_size": [8, 16, 16]}, (8, 16, 24), [(4, 8, 8)] * 4),
    "primus-registers": ({**PRIMUS, "img_size": [8, 24, 16], "registers": 2, "layer_scale": None},
                         (8, 24, 16), [(4, 8, 8)] * 4),
}  # fmt: skip
CHAINS = [
    key
    for key, (config, *_) in CASES.items()
    if config["name"] not in ("swin3d", "primus") and "rescale" not in config
]
PRIMUSES = [key for key in CASES if key.startswith("primus")]


def make(key: str) -> tuple[Encoder, Tensor]:
    """A small encoder in eval mode, no weight at its initial zero or one, and two images for it."""
    torch.manual_seed(0)
    config, spatial, _ = CASES[key]
    encoder = build_encoder(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder, torch.randn(2, encoder.in_channels, *spatial)


@pytest.mark.parametrize("key", CASES)
@torch.no_grad()
def test_shapes_are_those_promised(key: str) -> None:
    encoder, x = make(key)
    features = encoder(x, pyramid=True)
    grid = encoder.grid(x.shape[2:])
    assert features.grid == grid and encoder(x).pyramid is None
    assert features.pooled.shape == (2, encoder.embed_dim)
    assert features.tokens.shape == (2, torch.Size(grid).numel(), encoder.embed_dim)
    levels = features.pyramid
    assert levels is not None
    strides = [tuple(s // g for s, g in zip(x.shape[2:], level.shape[2:], strict=True)) for level in levels]
    assert strides == CASES[key][2]
    assert torch.allclose(levels[-1].flatten(2).transpose(1, 2), features.tokens, atol=1e-5)
    assert len(encoder.patch_size) == encoder.ndim == x.ndim - 2
    assert encoder.get_parameter(encoder.stem).shape[1] == encoder.in_channels


@pytest.mark.parametrize("key", CASES)
@torch.no_grad()
def test_any_multiple_of_the_patch_is_taken_and_others_are_refused(key: str) -> None:
    encoder, x = make(key)
    larger = [2 * s if i == 0 else s for i, s in enumerate(x.shape[2:])]
    assert encoder(torch.randn(1, encoder.in_channels, *larger)).grid == encoder.grid(larger)
    with pytest.raises(ConfigError, match=r"is not a multiple of the patch .*crop"):
        encoder(torch.randn(1, encoder.in_channels, *x.shape[2:-1], x.shape[-1] + 1))
    with pytest.raises(ConfigError, match="channels"):
        encoder(torch.randn(1, encoder.in_channels + 1, *x.shape[2:]))
    with pytest.raises(ConfigError, match="axes"):
        encoder(x[..., 0])


@pytest.mark.parametrize("key", CASES)
def test_layer_groups_hold_every_parameter_once_and_begin_with_the_stem(key: str) -> None:
    encoder, _ = make(key)
    groups = encoder.layer_groups()
    names = [name for group in groups for name, _ in group]
    assert sorted(names) == sorted(name for name, _ in encoder.named_parameters())
    assert encoder.stem in [name for name, _ in groups[0]]
    assert len(groups) >= 3 and all(groups)


@pytest.mark.parametrize("key", CASES)
def test_gradients_and_bfloat16(key: str) -> None:
    encoder, x = make(key)
    encoder.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = encoder(x)
    assert torch.isfinite(features.tokens).all()
    (features.tokens.float().square().mean() + features.pooled.float().sum()).backward()
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("key", CASES)
def test_computing_again_gives_the_same_gradients_from_less_memory(key: str) -> None:
    encoder, x = make(key)
    found: list[list[Tensor]] = []
    kept: list[int] = []
    for encoder.recompute in (False, True):
        encoder.zero_grad()
        sizes: list[int] = []
        with saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):  # noqa: B023
            loss = encoder(x).tokens.square().mean()
        loss.backward()
        found.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
        kept.append(sum(sizes))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))
    assert kept[1] < 0.7 * kept[0]


@pytest.mark.parametrize("key", CHAINS)
def test_computing_again_keeps_hidden_places_hidden(key: str) -> None:
    encoder, x = make(key)
    visible = torch.rand(2, *encoder.grid(x.shape[2:]), generator=torch.Generator().manual_seed(1)) > 0.4
    assert visible.flatten(1).any(1).all() and not visible.all()
    found: list[list[Tensor]] = []
    for encoder.recompute in (False, True):
        encoder.zero_grad()
        with sparse(encoder, visible):
            loss = encoder(x).tokens.square().mean()
        loss.backward()
        found.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("key", CHAINS)
@torch.no_grad()
def test_hidden_voxels_do_not_reach_visible_cells_and_pooling_leaves_them_out(key: str) -> None:
    encoder, x = make(key)
    grid = encoder.grid(x.shape[2:])
    visible = torch.rand(2, *grid, generator=torch.Generator().manual_seed(1)) > 0.4
    shown = visible.unsqueeze(1)
    for axis, side in enumerate(encoder.patch_size, start=2):
        shown = shown.repeat_interleave(side, dim=axis)
    with sparse(encoder, visible):
        a = encoder(x, pyramid=True)
        b = encoder(torch.where(shown, x, 9.0), pyramid=True)
    assert a.pyramid is not None and b.pyramid is not None
    for one, two in zip(a.pyramid, b.pyramid, strict=True):
        assert torch.equal(one, two)
    tokens = visible.flatten(1).unsqueeze(-1)
    assert not a.tokens.masked_select(~tokens).any() and a.tokens.masked_select(tokens).any()
    assert torch.equal(a.pooled, b.pooled)
    with sparse(encoder, torch.ones_like(visible)):
        whole = encoder(x)
    assert torch.allclose(whole.tokens, encoder(x).tokens, atol=1e-4)
    assert torch.allclose(whole.pooled, encoder(x).pooled, atol=1e-4)


@pytest.mark.parametrize("key", CHAINS)
@torch.no_grad()
def test_pooled_is_the_mean_of_the_tokens(key: str) -> None:
    encoder, x = make(key)
    features = encoder(x)
    mean = features.tokens.mean(1)
    if key.startswith("convnext"):
        mean = encoder.get_submodule("model.head.norm")(mean)
    assert torch.allclose(features.pooled, mean, atol=1e-5)


@pytest.mark.parametrize("key", PRIMUSES)
@torch.no_grad()
def test_primus_computes_kept_tokens_as_all_and_in_any_order(key: str) -> None:
    encoder, x = make(key)
    plain = encoder(x)
    n = plain.tokens.shape[1]
    every = encoder(x, keep=torch.arange(n).expand(2, -1))
    assert torch.allclose(every.tokens, plain.tokens, atol=1e-5) and every.grid is None
    keep = torch.stack([torch.randperm(n, generator=torch.Generator().manual_seed(i))[:3] for i in (0, 1)])
    a, b = encoder(x, keep=keep), encoder(x, keep=keep.flip(1))
    assert torch.allclose(a.tokens, b.tokens.flip(1), atol=1e-5)
    changed = x.clone()
    changed[..., :4, :8, :8] += 5.0
    rest = torch.arange(1, n).expand(2, -1)
    assert torch.equal(encoder(x, keep=rest).tokens, encoder(changed, keep=rest).tokens)


@pytest.mark.parametrize("key", [*PRIMUSES, "swin3d"])
@torch.no_grad()
def test_hidden_tokens_are_replaced_behind_the_patch_embedding(key: str) -> None:
    encoder, x = make(key)
    grid = encoder.grid(x.shape[2:])
    mask = torch.zeros(2, torch.Size(grid).numel(), dtype=torch.bool)
    mask[:, 0] = True
    token = torch.randn(1, 1, encoder.token_dim)
    changed = x.clone()
    changed[(..., *(slice(0, side) for side in encoder.patch_size))] += 5.0
    hidden = encoder(x, hide=Hide(mask, token)).tokens
    assert torch.equal(hidden, encoder(changed, hide=Hide(mask, token)).tokens)
    assert not torch.allclose(hidden, encoder(x, hide=Hide(mask, token.flip(2))).tokens, atol=1e-4)
    nothing = Hide(torch.zeros_like(mask), token)
    assert torch.equal(encoder(x, hide=nothing).tokens, encoder(x).tokens)


@torch.no_grad()
def test_primus_is_nnunet_s_own_network_under_its_names() -> None:
    from dynamic_network_architectures.architectures.primus import Primus

    encoder, x = make("primus-registers")
    network = Primus(
        1, 48, (4, 8, 8), 2, eva_depth=4, eva_numheads=2, input_shape=(8, 24, 16),
        num_register_tokens=2, scale_attn_inner=True,
    ).eval()  # fmt: skip
    report = network.load_state_dict(encoder.state_dict(), strict=False)
    assert not report.unexpected_keys
    assert all(key.startswith(("up_projection", "mask_token")) for key in report.missing_keys)
    seen: list[Tensor] = []
    network.up_projection.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network(x)
    assert torch.allclose(seen[0].flatten(2).transpose(1, 2), encoder(x).tokens, atol=1e-6)


@torch.no_grad()
def test_resenc_l_is_nnunet_s_encoder_under_its_names() -> None:
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
    from torch import nn

    encoder, x = make("resenc")
    network = ResidualEncoderUNet(
        1, 3, [8, 8, 16], nn.Conv3d, [[1, 3, 3], [3, 3, 3], [3, 3, 3]], [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        [1, 1, 2], 2, 1, True, nn.InstanceNorm3d, {"eps": 1e-5, "affine": True}, None, None,
        nn.LeakyReLU, {"inplace": True},
    ).eval()  # fmt: skip
    report = network.load_state_dict(encoder.state_dict(), strict=False)
    assert not report.unexpected_keys
    assert all(key.startswith("decoder.") for key in report.missing_keys)
    for own, theirs in zip(encoder(x, pyramid=True).pyramid or [], network.encoder(x), strict=True):
        assert torch.equal(own, theirs)
    large = build_encoder({"name": "resenc"})
    assert sum(p.numel() for p in large.parameters()) == 90_296_576
    assert large.patch_size == (32, 32, 32)


@torch.no_grad()
def test_monai_s_networks_run_with_our_weights() -> None:
    from monai.networks.nets import SegResNet, SwinUNETR

    encoder, x = make("segresnet")
    plain = SegResNet(
        init_filters=8, in_channels=2, blocks_down=(1, 1, 2), blocks_up=(1, 1),
        norm=("GROUP", {"num_groups": 8}),
    ).eval()  # fmt: skip
    assert not plain.load_state_dict(encoder.state_dict(), strict=False).unexpected_keys
    assert torch.equal(plain.encode(x)[0].flatten(2).transpose(1, 2), encoder(x).tokens)

    torch.manual_seed(0)
    swin = build_encoder({"name": "swin3d", "feature_size": 12, "depths": [1, 1, 1, 1],
                          "num_heads": [1, 1, 1, 1], "window": [2, 2, 2]}).eval()  # fmt: skip
    whole = SwinUNETR(1, 2, depths=(1,) * 4, num_heads=(1,) * 4, feature_size=12, window_size=2).eval()
    assert not whole.load_state_dict(swin.state_dict(), strict=False).unexpected_keys
    volume = torch.randn(1, 1, 32, 32, 64)
    for theirs, own in zip(whole.swinViT(volume), swin(volume, pyramid=True).pyramid or [], strict=True):
        assert torch.equal(theirs, own)


@pytest.mark.parametrize("model", ["convnext_atto", "convnext_tiny", "convnextv2_atto", "convnext_atto_ols",
                                   "convnext_tiny_hnf"])  # fmt: skip
@torch.no_grad()
def test_inflated_weights_give_a_volume_of_equal_slices_what_they_gave_the_picture(
    model: str, tmp_path: Any
) -> None:
    flat = build_encoder({"name": "convnet", "model": model, "in_channels": 1, "kwargs": FLAT}).eval()
    for parameter in flat.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_encoder(tmp_path, flat, {})
    section = {"name": "convnext3d", "model": model, "kwargs": FLAT, "kernel_depth": 5}
    deep = build_encoder({**section, "depth_strides": [4, 1, 2, 2]}).eval()
    report = load_into(deep, tmp_path)
    assert not report.missing and not report.unexpected
    x = torch.randn(2, 1, 64, 96)
    many = deep(x.unsqueeze(2).expand(-1, -1, 32, -1, -1))
    assert torch.allclose(many.pooled, flat(x).pooled, atol=1e-4)
    one = build_encoder({**section, "depth_strides": [1, 1, 1, 1]}).eval()
    load_into(one, tmp_path)
    assert torch.allclose(one(x.unsqueeze(2)).tokens, flat(x).tokens, atol=1e-4)


def test_weights_of_timm_are_taken_over_where_pretrained_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """timm's download is replaced by a network with known weights; everything behind it is real."""
    torch.manual_seed(0)
    known = timm.create_model("convnext_atto", in_chans=1, num_classes=0, **FLAT)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **_: copy.deepcopy(known))
    deep = build_encoder({"name": "convnext3d", "model": "convnext_atto", "pretrained": True, "kwargs": FLAT})
    weight = known.stages[0].blocks[0].conv_dw.weight
    inflated = deep.get_parameter("model.stages.0.blocks.0.conv_dw.weight")
    assert torch.allclose(inflated.sum(2), weight, atol=1e-6)
    assert torch.allclose(inflated[:, :, 0], inflated[:, :, 2])


@pytest.mark.parametrize("key", CASES)
@torch.no_grad()
def test_an_artefact_gives_the_same_network_again(key: str, tmp_path: Any) -> None:
    encoder, x = make(key)
    save_encoder(tmp_path, encoder, {})
    again, report = load_encoder(tmp_path)
    assert not report.missing and not report.unexpected
    assert torch.equal(again.eval()(x).tokens, encoder(x).tokens)


def test_without_nnunet_s_networks_the_error_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("dynamic_network_architectures")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures", None)
    for name in ("resenc", "primus"):
        with pytest.raises(ConfigError, match=rf"{name} needs .*pip install 'medloom\[nnunet\]'"):
            build_encoder({"name": name})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "resenc", "ndim": 4}, "give 2 or 3"),
        ({"name": "resenc", "features": [8, 8]}, "encoder.strides: 2 entries"),
        ({"name": "resenc", "strides": [1, 2, 2, 2, 2, [2, 2]]}, "or 3 of them"),
        ({"name": "resenc", "blocks": [1]}, "encoder.blocks has 1 stages"),
        ({"name": "segresnet", "filters": 12}, "multiple of groups"),
        ({"name": "segresnet", "blocks": []}, "at least 1"),
        ({"name": "convnext3d", "model": "resnet18"}, "is no ConvNeXt: choose"),
        ({"name": "convnext3d", "kernel_depth": 4}, "odd"),
        ({"name": "convnext3d", "depth_strides": [1, 2]}, "four numbers"),
        ({"name": "convnext3d", "kwargs": {"output_stride": 16, **FLAT}}, "dilation"),
        ({"name": "swin3d", "depths": [1] * 5, "num_heads": [1] * 5}, "1 to 4 stages"),
        ({"name": "swin3d", "num_heads": [5, 6, 12, 24]}, "into 5 heads"),
        ({"name": "swin3d", "window": [7, 7]}, "three sides"),
        ({"name": "swin3d", "downsample": "merge"}, "neither merging"),
        ({"name": "primus", "size": "XL"}, "unknown size"),
        ({"name": "primus", "embed_dim": 50, "num_heads": 2}, "multiple of 12"),
        ({"name": "primus", "patch_size": [8, 8]}, "three sides"),
        ({"name": "primus", "img_size": [96, 96, 90]}, "not a multiple of the patch"),
    ],
)
def test_wrong_configurations_are_refused_with_the_mend(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_encoder(config)


def test_a_single_token_is_refused_where_instance_norm_has_nothing_to_compare() -> None:
    encoder, _ = make("resenc")
    with pytest.raises(ConfigError, match="needs several: crop 4×8×8"):
        encoder.grid((2, 4, 4))
