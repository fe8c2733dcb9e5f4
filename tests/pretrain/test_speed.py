"""Operations and tokens that a step costs, against counts made by hand; gradient norms against torch's."""

from __future__ import annotations

import copy

import pytest
import torch
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.encoders.base import Features
from medloom.pretrain.gradients import GradientNorms
from medloom.pretrain.speed import Operations, Speed, peak
from torch import nn


class TwoLayers(nn.Module):
    """Four tokens an image, each from a quarter of its 16 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8, bias=False), nn.Linear(8, 8, bias=False)

    def forward(self, x: torch.Tensor) -> Features:
        tokens = self.second(self.first(x.reshape(len(x), 4, 4)))
        return Features(pooled=tokens.mean(dim=1), tokens=tokens)


def step(encoder: nn.Module, images: int) -> None:
    encoder(torch.ones(images, 1, 4, 4)).pooled.sum().backward()


def test_a_step_is_counted_once_and_charged_each_time() -> None:
    encoder, speed = TwoLayers(), Speed()
    speed.peak = 1e6
    tokens, first, second = 10 * 4, 10 * 4 * 2 * 4 * 8, 10 * 4 * 2 * 8 * 8
    # Forward both, weights of both, and the input of the second only: the image wants no gradient.
    operations = 2 * first + 3 * second
    for _ in range(3):
        speed.start((10, 1, 4, 4), encoder)
        step(encoder, 10)
        speed.stop((10, 1, 4, 4))
    found = speed.close(2.0, ranks=4)
    assert found["tokens_per_s"] == 3 * tokens * 4 / 2
    assert found["mfu"] == pytest.approx(3 * operations / 2 / 1e6)
    assert speed.close(2.0, ranks=4)["tokens_per_s"] == 0, "a row closes its window"
    assert not encoder._forward_hooks, "later steps cost nothing"


def test_each_shape_has_its_own_cost() -> None:
    encoder, speed = TwoLayers(), Speed()
    for images in (10, 5, 5):
        speed.start((images, 1, 4, 4), encoder)
        step(encoder, images)
        speed.stop((images, 1, 4, 4))
    assert speed.close(1.0, ranks=1)["tokens_per_s"] == 4 * (10 + 5 + 5)


def test_a_step_that_fails_leaves_nothing_behind() -> None:
    encoder, speed = TwoLayers(), Speed()
    speed.start((10, 1, 4, 4), encoder)
    speed.leave()
    speed.leave()
    assert not encoder._forward_hooks
    with Operations() as outside:
        step(encoder, 1)
    assert outside.count > 0


def test_attention_and_convolutions_are_counted() -> None:
    with Operations() as conv:
        nn.functional.conv2d(torch.ones(2, 3, 8, 8), torch.ones(5, 3, 3, 3), padding=1)
    assert conv.count == 2 * 2 * 64 * 5 * 3 * 9
    query = torch.ones(2, 4, 16, 8)
    with Operations() as attention:
        nn.functional.scaled_dot_product_attention(query, query, query)
    assert attention.count == 2 * 2 * (2 * 4 * 16 * 16 * 8)


def test_the_peak_is_reached_by_no_small_product() -> None:
    best = peak(torch.device("cpu"), "32-true")
    assert best > 1e8
    small = torch.ones(8, 8)
    import time

    start = time.perf_counter()
    for _ in range(200):
        small @ small
    assert 200 * 2 * 8**3 / (time.perf_counter() - start) < best


def test_gradient_norms_by_depth_make_up_the_whole_and_clip_as_torch_does() -> None:
    encoder = build_encoder({"name": "vit", "model": "vit_tiny_patch16_224", "img_size": 16, "patch_size": 8,
                             "embed_dim": 24, "depth": 6, "num_heads": 2, "in_channels": 1})  # fmt: skip
    head = nn.Linear(24, 3)
    head.bias.requires_grad_(False)
    head(
        encoder(torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))).pooled
    ).square().sum().backward()
    twin_encoder, twin_head = copy.deepcopy(encoder), copy.deepcopy(head)
    for a, b in zip([*encoder.parameters(), *head.parameters()],
                    [*twin_encoder.parameters(), *twin_head.parameters()], strict=True):  # fmt: skip
        b.grad = None if a.grad is None else a.grad.clone()
    total, parts = GradientNorms(encoder, head).clip(0.5)
    expected = torch.nn.utils.clip_grad_norm_([*twin_encoder.parameters(), *twin_head.parameters()], 0.5)
    names = ("embedding", "blocks_1", "blocks_2", "blocks_3", "blocks_4", "objective")
    assert set(parts) == {f"grad_norm/{name}" for name in names}
    assert torch.allclose(total, expected) and float(total) > 0.5
    assert torch.allclose(torch.stack(list(parts.values())).square().sum().sqrt(), total)
    for a, b in zip(encoder.parameters(), twin_encoder.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None and b.grad is not None:
            assert torch.allclose(a.grad, b.grad)
    before = [p.grad.clone() for p in head.parameters() if p.grad is not None]
    GradientNorms(encoder, head).clip(None)
    assert all(
        torch.equal(x, p.grad) for x, p in zip(before, head.parameters(), strict=False) if p.grad is not None
    )
