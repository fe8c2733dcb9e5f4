"""finetune/heads.py: every encoder, 2D and 3D, gives logits at the image's resolution."""

from __future__ import annotations

import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.finetune.heads import Classifier, LinearClassifier, LinearSegmenter, Segmenter
from medloom.pretrain.decoders import stride_chain
from medloom.pretrain.encoders import build_encoder

VIT = {"name": "vit", "model": "vit_tiny_patch16_224", "depth": 2}
ENCODERS = {
    "vit": ({**VIT, "img_size": 32, "patch_size": 8}, (48, 32)),
    "vit14": ({**VIT, "img_size": 28, "patch_size": 14}, (42, 28)),
    "convnext": ({"name": "convnet", "model": "convnext_atto"}, (64, 96)),
    "resnet": ({"name": "convnet", "model": "resnet10t"}, (64, 64)),
    "vit3d": ({"name": "vit3d", "size": "tiny", "depth": 2, "patch_size": [8, 8, 8]}, (16, 24, 16)),
    "thick": ({"name": "vit3d", "size": "tiny", "depth": 2, "patch_size": [2, 8, 8]}, (6, 24, 16)),
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("head", [Segmenter, LinearSegmenter])
def test_segmentation_logits_have_the_shape_of_the_image(name: str, head: type) -> None:
    section, shape = ENCODERS[name]
    encoder = build_encoder(section)
    network = head(encoder, 3)
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


@pytest.mark.parametrize("name", ["vit", "convnext", "vit3d"])
@pytest.mark.parametrize("head", [Classifier, LinearClassifier])
def test_classification_logits(name: str, head: type) -> None:
    section, shape = ENCODERS[name]
    encoder = build_encoder(section)
    assert head(encoder, 4)(torch.randn(2, encoder.in_channels, *shape)).shape == (2, 4)


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
    for head in (Segmenter(encoder, 2, width=8), LinearSegmenter(encoder, 2)):
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
    assert right[LinearSegmenter] < 0.7


def test_a_width_that_group_norm_cannot_take_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 8"):
        Segmenter(build_encoder(ENCODERS["vit"][0]), 2, width=12)
