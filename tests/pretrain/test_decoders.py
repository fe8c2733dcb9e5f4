"""pretrain/decoders.py: features of any encoder come back at the image's resolution, and all of it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.decoders import Level, PixelDecoder, pyramid_levels, strides_of
from medloom.pretrain.encoders import build_encoder

VIT = {"name": "vit", "model": "vit_tiny_patch16_224", "depth": 2, "embed_dim": 24, "num_heads": 2}
# key -> (config, spatial size that fits)
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "vit14": ({**VIT, "img_size": 28, "patch_size": 14}, (42, 28)),
    "convnext": ({"name": "convnet", "model": "convnext_atto"}, (64, 96)),
    "resnet": ({"name": "convnet", "model": "resnet10t", "in_channels": 1}, (64, 64)),
    "thick": ({"name": "vit3d", "size": "tiny", "depth": 2, "patch_size": [2, 8, 8]}, (6, 24, 16)),
}


@pytest.mark.parametrize("key", CASES)
def test_pixels_have_the_size_of_the_image_and_all_weights_learn(key: str) -> None:
    config, spatial = CASES[key]
    encoder = build_encoder(config)
    decoder = PixelDecoder(encoder, 2, width=8)
    features = encoder(torch.randn(2, encoder.in_channels, *spatial), pyramid=True)
    pixels = decoder(features)
    assert pixels.shape == (2, 2, *spatial)
    pixels.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())
    assert not any(encoder is module for module in decoder.modules())


def test_a_plain_transformer_gets_one_linear_layer_from_a_token_to_its_own_patch() -> None:
    encoder = build_encoder(CASES["thick"][0])
    decoder = PixelDecoder(encoder, 1)
    assert [p.shape for p in decoder.parameters()] == [(192, 1, 2, 8, 8), (1,)]
    features = encoder(torch.randn(1, 1, 4, 16, 16), pyramid=True)
    assert features.pyramid is not None
    before = decoder(features)
    features.pyramid[-1][0, :, 1, 0, 1] += 1.0
    changed = (decoder(features) != before).nonzero()[:, 2:]
    assert changed.amin(0).tolist() == [2, 0, 8]
    assert changed.amax(0).tolist() == [3, 7, 15]


def test_measuring_a_pyramid_leaves_the_encoder_as_it_was() -> None:
    encoder = build_encoder({"name": "convnet", "model": "resnet10t"}).train()
    batch_norm = next(m for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)).eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    levels = pyramid_levels(encoder)
    assert [level.stride for level in levels] == [(2, 2), (4, 4), (8, 8), (16, 16), (32, 32)]
    assert encoder.training and not batch_norm.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_strides_go_by_halves_below_the_finest_map_and_by_the_pyramid_above() -> None:
    levels = [Level(8, stride) for stride in [(1, 4, 4), (2, 8, 8), (2, 16, 16)]]
    assert strides_of(levels) == [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8), (2, 16, 16)]
    assert strides_of([Level(8, (14, 14))] * 4) == [(1, 1), (2, 2), (4, 4), (7, 7), (14, 14)]


def test_what_makes_no_sense_is_refused() -> None:
    encoder = build_encoder(CASES["convnext"][0])
    with pytest.raises(ConfigError, match="multiples of 8"):
        PixelDecoder(encoder, 1, width=12)
    with pytest.raises(ValueError, match="pyramid=True"):
        PixelDecoder(encoder, 1)(encoder(torch.randn(1, 3, 32, 32)))


def test_a_convolutional_encoder_and_its_decoder_learn_to_draw_the_image() -> None:
    torch.manual_seed(0)
    encoder = build_encoder({"name": "convnet", "model": "resnet10t", "in_channels": 1})
    decoder = PixelDecoder(encoder, 1, width=8)
    image = torch.nn.functional.interpolate(torch.rand(4, 1, 8, 8), size=(64, 64), mode="bilinear") - 0.5
    optimiser = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], 3e-3)
    losses: list[float] = []
    for _ in range(25):
        loss = (decoder(encoder(image, pyramid=True)) - image).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
