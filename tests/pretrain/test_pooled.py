"""Only what is wanted: a last block for some tokens, and pooled features without the patches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.encoders.blocks import run_block, run_blocks
from medloom.pretrain.encoders.patches import Filled, Wanted
from medloom.pretrain.encoders.positions import rotations
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3}
ONLY = {
    "plain": (lambda: Block(16, 2, qkv_bias=True, init_values=0.5), None),
    "no bias, normed": (lambda: Block(16, 2, qk_norm=True), None),
    "rotary": (lambda: Block(16, 2, qkv_bias=True), "shared"),
    "rotary of each": (lambda: Block(16, 2, qkv_bias=True), "own"),
    "another kind": (lambda: EvaBlock(16, 2), None),
}


@pytest.mark.parametrize("kind", ONLY)
def test_a_last_block_for_some_tokens_gives_what_the_whole_one_gives(kind: str) -> None:
    torch.manual_seed(0)
    build, tables = ONLY[kind]
    blocks = torch.nn.ModuleList([build(), build()])
    rope = {None: None, "shared": rotations((5,), 8), "own": torch.randn(3, 1, 5, 8)}[tables]
    only = torch.tensor([[0, 3], [4, 1], [2, 2]])
    results = []
    for wanted in (None, only):
        x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        tokens, levels = run_blocks(
            blocks, x, rope=rope, levels=[0], only=Wanted(wanted) if wanted is not None else None
        )
        chosen = tokens if wanted is not None else tokens.gather(1, only[..., None].expand(-1, -1, 16))
        assert chosen.shape == (3, 2, 16) and levels[0].shape == (3, 5, 16)
        blocks.zero_grad()
        chosen.square().sum().backward()
        assert x.grad is not None
        results.append(
            [chosen.detach(), x.grad, *(p.grad.clone() for p in blocks.parameters() if p.grad is not None)]
        )
    assert len(results[0]) == len(results[1])
    for whole, some in zip(*results, strict=True):
        torch.testing.assert_close(some, whole, rtol=1e-4, atol=1e-5)


RAGGED = Wanted(torch.tensor([[3, 0], [0, 0], [1, 4]]), torch.tensor([0, 4, 5]))  # 1, 0 and 2 of 5 tokens


@pytest.mark.parametrize("kind", ONLY)
def test_a_last_block_takes_different_numbers_of_tokens(kind: str) -> None:
    torch.manual_seed(0)
    build, tables = ONLY[kind]
    blocks = torch.nn.ModuleList([build(), build()])
    rope = {None: None, "shared": rotations((5,), 8), "own": torch.randn(3, 1, 5, 8)}[tables]
    results = []
    for only in (None, RAGGED):
        x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        tokens, _ = run_blocks(blocks, x, rope=rope, only=only)
        chosen = tokens if only else tokens.flatten(0, 1)[[3, 11, 14]]
        blocks.zero_grad()
        chosen.square().sum().backward()
        assert chosen.shape == (3, 16) and x.grad is not None
        results.append([chosen.detach(), x.grad, *(p.grad.clone() for p in blocks.parameters())])
    for whole, some in zip(*results, strict=True):
        torch.testing.assert_close(some, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("some", [True, False])
@pytest.mark.parametrize("kind", ONLY)
def test_a_table_that_fills_up_gives_what_its_copies_give(kind: str, some: bool, depth: int) -> None:
    torch.manual_seed(0)
    build, tables = ONLY[kind]
    blocks = torch.nn.ModuleList([build() for _ in range(depth)])
    rope = {None: None, "shared": rotations((5,), 8), "own": torch.randn(3, 1, 5, 8)}[tables]
    keep, only = torch.tensor([[4, 0], [1, 2], [3, 0]]), torch.tensor([[1, 2, 3], [0, 3, 4], [1, 2, 4]])
    results = []
    for filled in (True, False):
        generator = torch.Generator().manual_seed(1)
        table = torch.randn(5, 16, generator=generator).requires_grad_()
        given = torch.randn(3, 2, 16, generator=generator).requires_grad_()
        tokens = Filled(table, given, keep)
        whole = table.expand(3, -1, -1).scatter(1, keep[..., None].expand_as(given), given)
        torch.testing.assert_close(tokens.whole(), whole, rtol=0, atol=0)
        out, _ = run_blocks(
            blocks, tokens if filled else whole, rope=rope, only=Wanted(only) if some else None
        )
        blocks.zero_grad()
        out.square().sum().backward()
        assert table.grad is not None and given.grad is not None
        results.append([out.detach(), table.grad, given.grad, *(p.grad.clone() for p in blocks.parameters())])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_a_table_goes_through_the_first_block_once() -> None:
    blocks, seen = torch.nn.ModuleList(Block(16, 2) for _ in range(2)), []
    for block in blocks:
        block.attn.qkv.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
    tokens = Filled(torch.randn(5, 16), torch.randn(3, 2, 16), torch.tensor([[4, 0], [1, 2], [3, 0]]))
    run_blocks(blocks, tokens)
    assert seen == [(5, 16), (3, 2, 16), (3, 5, 16)]


def test_dropped_samples_keep_their_wanted_tokens() -> None:
    torch.manual_seed(0)
    block, x = Block(16, 2, qkv_bias=True, drop_path=0.5).train(), torch.randn(6, 5, 16)
    only = torch.randint(0, 5, (6, 2))
    seen: list[tuple[int, ...]] = []
    block.mlp.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
    out = run_block(block, x, None, Wanted(only))
    assert out.shape == (6, 2, 16) and seen == [(3, 2, 16)]
    ragged = Wanted(only, torch.tensor([0, 3, 4]))  # samples are dropped whole: the block computes all tokens
    assert run_block(block, x, None, ragged).shape == (3, 16) and seen[1] == (3, 5, 16)


POOLING: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "vit": ({"name": "vit", "model": "vit_tiny_patch16_224", **SMALL}, (32, 48)),
    "registers": ({"name": "vit", "model": "vit_small_patch14_reg4_dinov2", **SMALL}, (28, 42)),
    "mean": ({"name": "vit", "model": "vit_base_patch16_rpn_224", **SMALL}, (32, 48)),
    "eva": ({"name": "vit", "model": "vit_small_patch16_dinov3", **SMALL}, (32, 48)),
    "vit3d": ({"name": "vit3d", "patch_size": [8, 8, 8], "positions": "both", "registers": 2, **SMALL},
              (16, 16, 24)),
    "vit3d mean": ({"name": "vit3d", "patch_size": [8, 8, 8], "pool": "mean", **SMALL}, (16, 16, 24)),
    "vit_any": ({"name": "vit_any", "patch_size": [8, 8, 8], "patch_size_2d": [8, 8], **SMALL},
                (16, 24)),
    "convnet": ({"name": "convnet", "model": "convnext_atto"}, (64, 64)),
}  # fmt: skip


@pytest.mark.parametrize("key", POOLING)
@torch.no_grad()
def test_pooled_and_some_tokens_are_those_of_a_whole_pass(key: str) -> None:
    torch.manual_seed(0)
    section, size = POOLING[key]
    encoder = build_encoder({**section, "in_channels": 1}).eval()
    x = torch.randn(2, 1, *size)
    whole = encoder(x)
    torch.testing.assert_close(encoder.embed(x), whole.pooled, rtol=1e-4, atol=1e-5)
    index = torch.tensor([[0, 2], [1, 0]])
    for only, tokens in (
        (Wanted(index), torch.stack([whole.tokens[0, [0, 2]], whole.tokens[1, [1, 0]]])),
        (Wanted(index, torch.tensor([1, 2])), torch.stack([whole.tokens[0, 2], whole.tokens[1, 1]])),
    ):
        found = encoder.some(x, only)
        assert found.grid is None
        torch.testing.assert_close(found.pooled, whole.pooled, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.tokens, tokens, rtol=1e-4, atol=1e-5)


def test_pooled_alone_computes_the_last_block_for_the_class_token_only() -> None:
    for key in ("vit", "vit3d", "vit_any"):
        section, size = POOLING[key]
        encoder = build_encoder({**section, "in_channels": 1})
        last = next(m for n, m in encoder.named_modules() if n.endswith("blocks.1.mlp"))
        seen: list[int] = []
        last.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(inputs[0].shape[1]))
        encoder.embed(torch.randn(2, 1, *size)).sum().backward()
        assert seen == [1]
        assert all(p.grad is not None for p in encoder.parameters())
