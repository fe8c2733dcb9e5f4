"""finetune/decoders.py: every encoder, 2D and 3D, gives logits at the image's resolution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.finetune.config import HeadConfig
from medloom.finetune.decoders import LinearSegmenter, Segmenter, Unetr, decoder, deep_loss
from medloom.pretrain.decoders import stride_chain
from medloom.pretrain.encoders import build_encoder
from torch import nn

from .nets import ENCODERS, VIT


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("head", ["unet", "linear", "unetr"])
def test_segmentation_logits_have_the_shape_of_the_image(name: str, head: str) -> None:
    section, shape = ENCODERS[name]
    encoder = build_encoder(section)
    if head == "unetr" and name in ("convnext", "resnet"):
        with pytest.raises(ConfigError, match="decoder=unet"):
            decoder(encoder, 3, HeadConfig(decoder=head))
        return
    network = decoder(encoder, 3, HeadConfig(decoder=head))
    logits = network(torch.randn(2, encoder.in_channels, *shape))
    assert logits.shape == (2, 3, *shape)
    logits.square().mean().backward()
    assert all(p.grad is not None for n, p in network.named_parameters() if not n.startswith("encoder."))


@pytest.mark.parametrize("shape", [(24, 16), (4, 24, 16)])
def test_one_encoder_segments_pictures_and_volumes(shape: tuple[int, ...]) -> None:
    encoder = build_encoder({"name": "vit_any", "size": "tiny", "depth": 2, "patch_size": [2, 8, 8],
                             "patch_size_2d": [8, 8]})  # fmt: skip
    network = Segmenter(encoder, 3, ndim=len(shape))
    assert network(torch.randn(2, 1, *shape)).shape == (2, 3, *shape)


def test_strides_follow_thick_slices_and_odd_patches() -> None:
    assert stride_chain((4, 16, 16)) == [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8), (4, 16, 16)]
    assert stride_chain((14, 14)) == [(1, 1), (2, 2), (4, 4), (7, 7), (14, 14)]


def test_the_decoder_can_draw_what_is_smaller_than_a_patch() -> None:
    """A checkerboard of single pixels is out of reach for the tokens of a patch of 8."""
    torch.manual_seed(0)
    encoder = build_encoder(ENCODERS["vit"][0])
    image = (torch.rand(4, 1, 32, 32) > 0.5).float().expand(-1, 3, -1, -1)
    target = (image[:, 0] > 0.5).long()
    right = {}
    for head in (Segmenter(encoder, 2, width=8), Unetr(encoder, 2, width=8), LinearSegmenter(encoder, 2)):
        optimiser = torch.optim.AdamW(
            [p for n, p in head.named_parameters() if not n.startswith("encoder.")], 1e-2
        )
        for _ in range(30):
            loss = torch.nn.functional.cross_entropy(head(image), target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        right[type(head)] = float((head(image).argmax(1) == target).float().mean())
    assert right[Segmenter] > 0.97
    assert right[Unetr] > 0.97
    assert right[LinearSegmenter] < 0.7


def test_a_width_that_group_norm_cannot_take_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 8"):
        Segmenter(build_encoder(ENCODERS["vit"][0]), 2, width=12)


def test_unetr_draws_on_every_depth_of_the_transformer() -> None:
    """Patch 16: strides 2, 4 and 8 from three depths, as published; the fourth is the bottleneck."""
    encoder = build_encoder({**VIT, "img_size": 32, "patch_size": 16, "depth": 4})
    network = Unetr(encoder, 2)
    assert network.source == {1: 0, 2: 1, 3: 2}
    blocks: Any = encoder.get_submodule("model.blocks") if hasattr(encoder, "model") else encoder.blocks
    image = torch.randn(1, 3, 32, 32)
    before = network(image)
    for head in network.unfold.values():
        assert isinstance(head, nn.Sequential)
        nn.init.zeros_(head[0].weight)  # type: ignore[arg-type]
        after = network(image)
        assert not torch.allclose(after, before)
        before = after
    assert len(blocks) == 4


@pytest.mark.parametrize("kind", ["unet", "unetr"])
def test_deep_supervision_trains_coarser_outputs_and_leaves_the_finest_alone(kind: str) -> None:
    encoder = build_encoder(ENCODERS["vit3d"][0])
    network = decoder(encoder, 3, HeadConfig(decoder=kind, deep_supervision=2))
    assert isinstance(network, Segmenter)
    network.eval()
    image = torch.randn(2, 1, 16, 24, 16)
    scales = network.scales(image)
    assert [tuple(s.shape[1:]) for s in scales] == [(3, 16, 24, 16), (3, 8, 12, 8), (3, 4, 6, 4)]
    assert torch.allclose(scales[0], network(image), atol=1e-5)
    labels = torch.randint(0, 3, (2, 1, 16, 24, 16))
    deep_loss(CrossEntropy(), scales, labels).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.deep.parameters())


class CrossEntropy(nn.Module):
    """[B, K, *size] against [B, 1, *size]."""

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        assert logits.shape[2:] == labels.shape[2:]
        return nn.functional.cross_entropy(logits, labels[:, 0])


def test_the_deep_loss_is_the_weighted_mean_of_its_levels() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (2, 1, 8, 8))
    scales = [torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2)]
    shown = [labels, labels[:, :, 1::2, 1::2], labels[:, :, 2::4, 2::4]]  # the nearest to each centre
    parts = [CrossEntropy()(s, t) for s, t in zip(scales, shown, strict=True)]
    wanted = (parts[0] + parts[1] / 2 + parts[2] / 4) / 1.75
    assert torch.allclose(deep_loss(CrossEntropy(), scales, labels), wanted)


def test_convolutions_from_random_weights_get_a_rate_of_their_own() -> None:
    from medloom.finetune.config import load_config
    from medloom.finetune.protocols.gradient import groups

    def rate(encoder: str, *items: str) -> float:
        config = load_config("realdata-hippocampus", ["encoder=x", *items])
        network = decoder(build_encoder(ENCODERS[encoder][0]), 3, config.head)
        found = groups(network, config, pretrained=False)
        return max(group["peak"] for group in found if group["encoder"])

    assert rate("resnet") == 2e-3
    assert rate("vit3d") == 5e-4
    assert rate("resnet", "optim.scratch_lr=1e-4") == 1e-4
