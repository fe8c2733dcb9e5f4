"""The one loop over transformer blocks: rotary positions, stochastic depth, recomputation, levels.

timm's blocks are run part by part, not as a whole, for two reasons. Stochastic depth (arXiv 1603.09382)
then skips the arithmetic of what it drops instead of multiplying it by zero: a part runs on a random subset
of the batch, whose result is scaled up and added (as DINOv2 does, arXiv 2304.07193, section 5): with rates
that rise to 0.3 a training step of a ViT-S takes 0.83 of timm's time (CPU, 16 images). And plain ViT blocks,
whose names pretrained weights carry, take rotary positions. The number dropped is rate · B, rounded; where
that is 0 (small batches) samples are dropped one by one as timm does. Blocks of other kinds than those named
in `_parts` run as timm wrote them.

Crops of several sizes are not packed into one sequence: with attention apart and everything else in one,
2 × 14² and 8 × 6² tokens of a ViT-S take 1.02 of the time of two forwards (CPU), and a block-diagonal mask,
in a case small enough to hold one, 1.95.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from .positions import rotate

Part = Callable[[Tensor, Tensor | None], Tensor]  # (tokens, rotary table) -> what is added to the tokens


def run_blocks(
    blocks: Iterable[nn.Module],
    tokens: Tensor,
    *,
    rope: Sequence[Tensor | None] | Tensor | None = None,
    levels: Sequence[int] = (),
    recompute: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Run tokens [B, ..., E] through blocks.

    Args:
        rope: rotary tables, one for all blocks or a list of one each. A table of four axes is
            [B, heads or 1, N, d], one of its own for each sample; others broadcast.
        levels: indices of blocks whose output is kept.
        recompute: keep the input of each block only, and compute it again in the backward pass
            (arXiv 1604.06174): memory of one block instead of all, for a third more arithmetic.

    Returns:
        The tokens after the last block, and those after each of `levels`, in order.
    """
    kept: list[Tensor] = []
    for depth, block in enumerate(blocks):
        table = rope if rope is None or isinstance(rope, Tensor) else rope[depth]
        if recompute and torch.is_grad_enabled():
            tokens = cast(Tensor, checkpoint(run_block, block, tokens, table, use_reentrant=False))
        else:
            tokens = run_block(block, tokens, table)
        kept += [tokens] * list(levels).count(depth)
    return tokens, kept


def run_block(block: nn.Module, x: Tensor, rope: Tensor | None = None) -> Tensor:
    """One block of timm, with stochastic depth that skips what it drops."""
    parts = _parts(block)
    if parts is None:
        return block(x) if rope is None else block(x, rope=rope)
    for part, drop in parts:
        x = add_part(x, part, float(getattr(drop, "drop_prob", 0.0)) if block.training else 0.0, rope)
    return x


def add_part(x: Tensor, part: Part, rate: float, rope: Tensor | None = None) -> Tensor:
    """x + part(x), with a share `rate` of the samples left out and the others scaled: the mean is the same.

    Which ones is drawn from torch's global generator, as all dropout is.
    """
    if rate == 0.0:
        return x + part(x, rope)
    batch = x.shape[0]
    dropped = min(round(rate * batch), batch - 1)
    if dropped < 1:
        from timm.layers import drop_path

        return x + drop_path(part(x, rope), rate, True)
    chosen = torch.rand(batch, device=x.device).argsort()[: batch - dropped]
    some = rope.index_select(0, chosen) if rope is not None and rope.ndim == 4 else rope
    added = part(x.index_select(0, chosen), some).to(x.dtype)
    return x.index_add(0, chosen, added, alpha=batch / (batch - dropped))


def _parts(block: nn.Module) -> list[tuple[Part, nn.Module]] | None:
    """(what is added, its drop path) for both halves of a known block; None: run it as it is.

    Exact types: a subclass may have another forward.
    """
    from timm.models.eva import EvaBlock
    from timm.models.swin_transformer import SwinTransformerBlock
    from timm.models.vision_transformer import Block

    b = cast(Any, block)
    if type(block) is Block:
        first: Part = lambda x, rope: b.ls1(attend(b.attn, b.norm1(x), rope))  # noqa: E731
        second: Part = lambda x, _: b.ls2(b.mlp(b.norm2(x)))  # noqa: E731
    elif type(block) is EvaBlock:
        first = lambda x, rope: _scaled(b.gamma_1, b.attn(b.norm1(x), rope=rope))  # noqa: E731
        second = lambda x, _: _scaled(b.gamma_2, b.mlp(b.norm2(x)))  # noqa: E731
    elif type(block) is SwinTransformerBlock and hasattr(block, "_attn"):
        first = lambda x, _: b._attn(b.norm1(x))  # noqa: E731
        second = lambda x, _: b.mlp(b.norm2(x))  # noqa: E731
    else:
        return None
    return [(first, b.drop_path1), (second, b.drop_path2)]


def _scaled(gamma: Tensor | None, x: Tensor) -> Tensor:
    return x if gamma is None else gamma * x


def attend(attention: nn.Module, x: Tensor, rope: Tensor | None) -> Tensor:
    """timm's `Attention` on tokens [B, N, E], with queries and keys turned by `rope` where there is one."""
    if rope is None:
        return attention(x)
    a = cast(Any, attention)
    batch, n, _ = x.shape
    query, key, value = a.qkv(x).reshape(batch, n, 3, a.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    query, key = rotate(a.q_norm(query), rope), rotate(a.k_norm(key), rope)
    rate = a.attn_drop.p if attention.training else 0.0
    x = functional.scaled_dot_product_attention(query, key, value, dropout_p=rate)
    return a.proj_drop(a.proj(x.transpose(1, 2).reshape(batch, n, -1)))
