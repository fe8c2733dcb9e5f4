"""A convolutional encoder with hidden places left out: nothing of them is seen, none of them is counted."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.encoders import Encoder, build_encoder
from medloom.pretrain.encoders.sparse import _Run, sparse, unfit
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

# key -> (config, spatial size of a grid with several tokens an axis)
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "convnext": ({"name": "convnet", "model": "convnext_atto", "in_channels": 1}, (96, 64)),
    "linear-mlp": ({"name": "convnet", "model": "convnext_atto", "kwargs": {"conv_mlp": False}}, (64, 96)),
    "grn": ({"name": "convnet", "model": "convnextv2_atto", "in_channels": 1}, (64, 96)),
    "resnet": ({"name": "convnet", "model": "resnet10t", "in_channels": 1}, (64, 96)),
    "preact": ({"name": "convnet", "model": "resnetv2_18", "in_channels": 1}, (64, 96)),
    "regnet": ({"name": "convnet", "model": "regnetx_002", "in_channels": 1}, (64, 96)),
    "group-norm": ({"name": "convnet", "model": "resnet18", "in_channels": 1,
                    "kwargs": {"norm_layer": "groupnorm"}}, (64, 96)),
}  # fmt: skip


def make(key: str) -> tuple[Encoder, Tensor, Tensor]:
    """An encoder in training mode with weights that are not their initial zeros, images, visible places."""
    torch.manual_seed(0)
    config, spatial = CASES[key]
    encoder = build_encoder(config).train()
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter) + 0.1)
    x = torch.randn(3, encoder.in_channels, *spatial)
    grid = encoder.grid(spatial)
    draws = torch.rand(3, torch.Size(grid).numel())
    return encoder, x, (draws.argsort(1) % 2 == 0).reshape(3, *grid)


def pixels(visible: Tensor, size: torch.Size) -> Tensor:
    mask = visible.unsqueeze(1).float()
    return nn.functional.interpolate(mask, size=size, mode="nearest").bool()


@pytest.mark.parametrize("key", CASES)
def test_what_is_hidden_changes_nothing_and_all_maps_are_zero_there(key: str) -> None:
    encoder, x, visible = make(key)
    other = torch.where(pixels(visible, x.shape[2:]), x, torch.full_like(x, torch.nan))
    with sparse(encoder, visible):
        a, b = encoder(x, pyramid=True), encoder(other, pyramid=True)
    assert torch.equal(a.pooled, b.pooled) and torch.equal(a.tokens, b.tokens)
    assert a.pyramid is not None and b.pyramid is not None
    for one, two in zip(a.pyramid, b.pyramid, strict=True):
        assert torch.equal(one, two)
        shown = pixels(visible, one.shape[2:])
        assert not one.masked_select(~shown).any()
        assert one.masked_select(shown).abs().mean() > 1e-3


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("key", CASES)
def test_with_nothing_hidden_it_is_the_plain_network(key: str, mode: str) -> None:
    encoder, x, visible = make(key)
    encoder.train(mode == "train")
    twin = copy.deepcopy(encoder)
    plain = encoder(x, pyramid=True)
    with sparse(twin, torch.ones_like(visible)):
        same = twin(x, pyramid=True)
    assert torch.allclose(same.pooled, plain.pooled, atol=1e-4)
    for one, two in zip(same.pyramid or [], plain.pyramid or [], strict=True):
        assert torch.allclose(one, two, atol=1e-4, rtol=1e-4)
    (plain.tokens.square().mean() + plain.pooled.square().mean()).backward()
    (same.tokens.square().mean() + same.pooled.square().mean()).backward()
    for (name, a), b in zip(encoder.named_parameters(), twin.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert torch.allclose(a.grad, b.grad, atol=1e-3 * float(a.grad.abs().max()) + 1e-7), name
    for (name, a), b in zip(encoder.named_buffers(), twin.buffers(), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-5), name


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", ["batch", "instance", "group"])
def test_norms_know_visible_places_only(kind: str, ndim: int) -> None:
    """Against the norm's formula over the gathered visible values, running statistics included."""
    torch.manual_seed(0)
    batch = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[ndim](4, momentum=0.3)
    instance = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[ndim](4, affine=True)
    norm = {"batch": batch, "instance": instance, "group": nn.GroupNorm(2, 4)}[kind]
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 4, *[4] * ndim, dtype=torch.float64).float() * 3 + 1
    visible = torch.zeros(2, *[2] * ndim, dtype=torch.bool)
    visible.flatten(1)[0, 0] = visible.flatten(1)[1, 1:3] = True
    forward = _Run(visible).forward_of(norm)
    assert forward is not None
    y = forward(x).double()
    shown = pixels(visible, x.shape[2:])
    expected = torch.zeros_like(y)
    groups = {"batch": [(slice(None), [c]) for c in range(4)],
              "instance": [([b], [c]) for b in range(2) for c in range(4)],
              "group": [([b], c) for b in range(2) for c in ([0, 1], [2, 3])]}[kind]  # fmt: skip
    variances = []
    for rows, channels in groups:
        part = x[rows][:, channels].double()
        values = part.masked_select(shown[rows])
        scale = norm.weight[channels].double().reshape(1, -1, *[1] * ndim)
        shift = norm.bias[channels].double().reshape(1, -1, *[1] * ndim)
        normal = (part - values.mean()) / (values.var(unbiased=False) + norm.eps).sqrt() * scale + shift
        block = expected[rows]
        block[:, channels] = normal * shown[rows]
        expected[rows] = block
        variances.append(values.var())
    assert torch.allclose(y, expected, atol=1e-5)
    if kind == "batch":
        assert torch.allclose(batch.running_var.double(), 0.7 + 0.3 * torch.stack(variances), atol=1e-5)
        assert batch.num_batches_tracked == 1


def test_pooled_is_the_mean_over_visible_places() -> None:
    encoder, x, visible = make("resnet")
    with sparse(encoder, visible):
        features = encoder(x)
    shown = visible.flatten(1).unsqueeze(-1).float()
    assert torch.allclose(features.pooled, (features.tokens * shown).sum(1) / shown.sum(1), atol=1e-5)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False)])
def test_pooling_windows_across_the_border_take_what_is_visible(pool: nn.Module) -> None:
    x = -torch.rand(1, 1, 8, 8) - 1.0  # negative: a hidden place taken for zero would win, or dilute the mean
    visible = torch.tensor([[[True, False], [False, True]]])
    forward = _Run(visible).forward_of(pool)
    assert forward is not None
    y = forward(x)
    assert not y.masked_select(~pixels(visible, y.shape[2:])).any()
    window = torch.cat([x[0, 0, 2:4, 2:4].flatten(), x[0, 0, 4:5, 4]])  # what is visible around (3, 3)
    expected = window.max() if isinstance(pool, nn.MaxPool2d) else window.mean()
    assert torch.allclose(y[0, 0, 3, 3], expected)


@pytest.mark.parametrize("key", ["convnext", "resnet", "regnet"])
@pytest.mark.parametrize("masked", [True, False])
def test_stages_computed_again_give_the_same_gradients_from_less_memory(key: str, masked: bool) -> None:
    encoder, x, visible = make(key)
    visible = visible if masked else torch.ones_like(visible)
    found: list[list[Tensor]] = []
    kept: list[int] = []
    for encoder.recompute in (False, True):
        encoder.zero_grad()
        sizes: list[int] = []
        counted = saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t)  # noqa: B023
        with counted, sparse(encoder, visible):
            loss = encoder(x).tokens.square().mean()
        loss.backward()
        found.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
        kept.append(sum(sizes))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))
    assert kept[1] < 0.7 * kept[0]
    assert not any("forward" in module.__dict__ for module in encoder.modules())


def test_everything_is_put_back_also_after_an_error() -> None:
    encoder, x, visible = make("convnext")
    before = encoder(x).tokens
    with pytest.raises(RuntimeError, match="midway"), sparse(encoder, visible):
        assert not torch.allclose(encoder(x).tokens, before, atol=1e-3)
        raise RuntimeError("midway")
    assert torch.equal(encoder(x).tokens, before)
    assert not any("forward" in module.__dict__ for module in encoder.modules())
    assert not encoder._forward_pre_hooks


def test_encoders_that_mix_places_otherwise_are_refused_with_the_reason() -> None:
    gated = build_encoder({"name": "convnet", "model": "regnety_002", "in_channels": 1})
    assert not gated.convolutional and "Sigmoid" in str(unfit(gated))
    with (
        pytest.raises(ConfigError, match=r"Sigmoid \(model.*choose convnet with a convnext"),
        sparse(gated, torch.ones(1, 2, 2, dtype=torch.bool)),
    ):
        pass
    assert "BlurPool" in str(unfit(build_encoder({"name": "convnet", "model": "resnetblur50"})))
    assert unfit(nn.Sequential(nn.Conv2d(1, 1, 3), nn.Sequential(), nn.GELU())) is None
    assert "ConvTranspose2d" in str(unfit(nn.ConvTranspose2d(1, 1, 2)))
    encoder, x, visible = make("convnext")
    with (
        pytest.raises(ConfigError, match=r"grid of \(3, 2\), the image has one of \(2, 2\)"),
        sparse(encoder, visible),
    ):
        encoder(x[:, :, :64])
