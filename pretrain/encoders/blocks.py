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

from .patches import Filled, Wanted
from .positions import rotate

# (tokens, rotary table, tokens that are wanted or None) -> what is added to these
Part = Callable[[Tensor, Tensor | None, Wanted | None], Tensor]


def run_blocks(
    blocks: Iterable[nn.Module],
    tokens: Tensor | Filled,
    *,
    rope: Sequence[Tensor | None] | Tensor | None = None,
    levels: Sequence[int] = (),
    recompute: bool = False,
    only: Wanted | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Run tokens [B, ..., E] through blocks.

    Args:
        tokens: of a table that fills up, the first block makes queries, keys and values once.
        rope: rotary tables, one for all blocks or a list of one each. A table of four axes is
            [B, heads or 1, N, d], one of its own for each sample; others broadcast.
        levels: indices of blocks whose output is kept.
        recompute: keep the input of each block only, and compute it again in the backward pass
            (arXiv 1604.06174): memory of one block instead of all, for a third more arithmetic.
        only: the tokens whose output is wanted; the last block then computes the keys and values of all of
            them, and everything else for these alone: five sixths of its products for the others are saved.

    Returns:
        The tokens after the last block (what `only` picks of them), and after each of `levels`, in order.
    """
    kept: list[Tensor] = []
    blocks = list(blocks)
    for depth, block in enumerate(blocks):
        wanted = only if depth == len(blocks) - 1 else None
        table = rope if rope is None or isinstance(rope, Tensor) else rope[depth]
        if isinstance(tokens, Filled):
            tokens = run_filled(block, tokens, table, wanted)
        elif recompute and torch.is_grad_enabled():
            tokens = cast(Tensor, checkpoint(run_block, block, tokens, table, wanted, use_reentrant=False))
        else:
            tokens = run_block(block, tokens, table, wanted)
        kept += [tokens] * list(levels).count(depth)
    if isinstance(tokens, Filled):
        tokens = tokens.whole()
    return tokens if only is None or blocks else only.pick(tokens), kept


def run_filled(block: nn.Module, x: Filled, rope: Tensor | None, only: Wanted | None) -> Tensor:
    """`run_block` of tokens that a table fills up."""
    b, parts = cast(Any, block), _parts(block) or []
    sharded = hasattr(block, "whole")  # then weights are at hand in `run_parts` alone
    if sharded or not _plain(block) or any(rate_of(drop) for _, drop in parts):
        return run_block(block, x.whole(), rope, only)
    qkv = x.each(lambda tokens: b.attn.qkv(b.norm1(tokens))).whole()
    tokens = x.whole() if only is None else only.pick(x.whole())
    return add_part(tokens + b.ls1(attend(b.attn, qkv, rope, only, made=True)), parts[1][0], 0.0)


def run_block(block: nn.Module, x: Tensor, rope: Tensor | None = None, only: Wanted | None = None) -> Tensor:
    """One block of timm, with stochastic depth that skips what it drops; `only` as in `run_blocks`."""
    if only is not None and not takes_only(block, only):
        return only.pick(run_block(block, x, rope))
    if _parts(block) is None:
        return block(x) if rope is None else block(x, rope=rope)
    whole = getattr(block, "whole", None)  # gathers sharded weights around the call (scale/sharding.py)
    return run_parts(block, x, rope, only) if whole is None else whole(x, rope, only)


def run_parts(block: nn.Module, x: Tensor, rope: Tensor | None = None, only: Wanted | None = None) -> Tensor:
    """`run_block` of a block whose parts are known, with its weights at hand."""
    for part, drop in _parts(block) or ():
        x = add_part(x, part, rate_of(drop), rope, only)
        only = None  # the second part sees the tokens that the first has left
    return x


def kind_of(block: nn.Module) -> type[nn.Module]:
    """The class of a block; sharding puts a class of its own above it and notes which it was."""
    return getattr(block, "plain_kind", type(block))


def rate_of(drop: nn.Module) -> float:
    """The share of samples that a drop path leaves out, in training."""
    return float(getattr(drop, "drop_prob", 0.0)) if drop.training else 0.0


def takes_only(block: nn.Module, only: Wanted) -> bool:
    """Whether a block can compute these tokens from all of them."""
    # Samples are left out whole, which rows of different numbers do not show.
    return _plain(block) and (only.slots is None or not any(rate_of(drop) for _, drop in _parts(block) or ()))


def _plain(block: nn.Module) -> bool:
    """Whether this is timm's own block with its own attention and a weight that is all it computes with."""
    from timm.models.vision_transformer import Attention, Block

    if kind_of(block) is not Block or type(cast(Any, block).attn) is not Attention:
        return False
    return type(cast(Any, block).attn.qkv) is nn.Linear  # an adapter's is not


def add_part(
    x: Tensor, part: Part, rate: float, rope: Tensor | None = None, only: Wanted | None = None
) -> Tensor:
    """x + part(x), with a share `rate` of the samples left out and the others scaled: the mean is the same.

    Which ones is drawn from torch's global generator, as all dropout is. With `only`, the sum at these.
    """
    base = x if only is None else only.pick(x)
    if rate == 0.0:
        return base + part(x, rope, only)
    batch = x.shape[0]
    dropped = min(round(rate * batch), batch - 1)
    if dropped < 1:
        from timm.layers import drop_path

        return base + drop_path(part(x, rope, only), rate, True)
    chosen = torch.rand(batch, device=x.device).argsort()[: batch - dropped]
    some = rope.index_select(0, chosen) if rope is not None and rope.ndim == 4 else rope
    places = None if only is None else Wanted(only.index.index_select(0, chosen))
    added = part(x.index_select(0, chosen), some, places).to(x.dtype)
    return base.index_add(0, chosen, added, alpha=batch / (batch - dropped))


def _parts(block: nn.Module) -> list[tuple[Part, nn.Module]] | None:
    """(what is added, its drop path) for both halves of a known block; None: run it as it is.

    Exact types: a subclass may have another forward.
    """
    from timm.models.eva import EvaBlock
    from timm.models.swin_transformer import SwinTransformerBlock
    from timm.models.vision_transformer import Block

    b, kind = cast(Any, block), kind_of(block)
    if kind is Block:
        first: Part = lambda x, rope, only: b.ls1(attend(b.attn, b.norm1(x), rope, only))  # noqa: E731
        second: Part = lambda x, *_: b.ls2(b.mlp(b.norm2(x)))  # noqa: E731
    elif kind is EvaBlock:
        first = lambda x, rope, _: _scaled(b.gamma_1, b.attn(b.norm1(x), rope=rope))  # noqa: E731
        second = lambda x, *_: _scaled(b.gamma_2, b.mlp(b.norm2(x)))  # noqa: E731
    elif kind is SwinTransformerBlock and hasattr(block, "_attn"):
        first = lambda x, *_: b._attn(b.norm1(x))  # noqa: E731
        second = lambda x, *_: b.mlp(b.norm2(x))  # noqa: E731
    else:
        return None
    return [(first, b.drop_path1), (second, b.drop_path2)]


def _scaled(gamma: Tensor | None, x: Tensor) -> Tensor:
    return x if gamma is None else gamma * x


def attend(
    attention: nn.Module, x: Tensor, rope: Tensor | None, only: Wanted | None = None, made: bool = False
) -> Tensor:
    """timm's `Attention` on tokens [B, N, E], with queries and keys turned by `rope` where there is one.

    With `only`, the outcome at these tokens; with `made`, x is queries, keys and values already: [B, N, 3 E].
    """
    from timm.models.vision_transformer import Attention

    if rope is None and only is None and type(attention) is not Attention:
        return attention(x)
    a = cast(Any, attention)
    if made or only is None:
        query, key, value = _heads(x if made else a.qkv(x), 3, a.num_heads)
        if only is not None:
            query = _heads(only.spread(only.pick(x)), 3, a.num_heads)[0]
    else:
        weight, bias = a.qkv.weight, a.qkv.bias
        inner = weight.shape[0] // 3
        of_query, of_rest = (None, None) if bias is None else (bias[:inner], bias[inner:])
        query = only.spread(functional.linear(only.pick(x), weight[:inner], of_query))
        (query,) = _heads(query, 1, a.num_heads)
        key, value = _heads(functional.linear(x, weight[inner:], of_rest), 2, a.num_heads)
    query, key = a.q_norm(query), a.k_norm(key)
    if rope is not None:
        query, key = rotate(query, rope if only is None else _rows(rope, only.index)), rotate(key, rope)
    rate = a.attn_drop.p if attention.training else 0.0
    x = functional.scaled_dot_product_attention(query, key, value, dropout_p=rate).transpose(1, 2).flatten(2)
    return a.proj_drop(a.proj(x if only is None else only.collect(x)))


def _heads(x: Tensor, parts: int, heads: int) -> list[Tensor]:
    """[B, N, parts · heads · d] -> parts of [B, heads, N, d].

    Cut along the channels, not unbound from an axis of parts as timm does: their gradients are then put
    together in one copy instead of two.
    """
    return [part.unflatten(2, (heads, -1)).transpose(1, 2) for part in x.chunk(parts, dim=2)]


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a rotary table [N, d] or [B, heads or 1, N, d] at `index` [B, K]: [B, heads or 1, K, d]."""
    if table.ndim == 2:
        return table[index].unsqueeze(1)
    return table.gather(2, index[:, None, :, None].expand(-1, table.shape[1], -1, table.shape[-1]))
