"""Heads on frozen features: neighbours' votes, a linear layer on several blocks, attention over tokens.

All are `FrozenProbe`: what they read of the encoder is computed once, without augmentation, and shared with
every other probe that reads the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..pretrain.encoders.base import Encoder
from .heads import FrozenProbe

BLOCKS = 4  # last blocks that `LinearProbe` may read


class Neighbours(FrozenProbe):
    """Votes of the k nearest training images (cosine of `summary`), weighted by exp(cosine / temperature).

    Wu et al., arXiv 1805.01978, section 3.4. What it puts out is the mean vote, a prediction already. `bank`
    [N, 2E] holds the training images' descriptors, of length 1, and `ballots` [N, K] what each votes for.
    """

    settled = True
    bank: Tensor
    ballots: Tensor
    k: Tensor
    temperature: Tensor

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("bank", torch.zeros(0, 2 * encoder.embed_dim))
        self.register_buffer("ballots", torch.zeros(0, 0))
        self.register_buffer("k", torch.tensor(1))
        self.register_buffer("temperature", torch.tensor(0.07))

    def fill(self, rows: Tensor, ballots: Tensor, temperature: float) -> None:
        """Remember the training images: descriptors [N, 2E] and votes [N, K]."""
        self.bank = functional.normalize(rows, dim=1)
        self.ballots = ballots.to(rows)
        self.temperature.fill_(temperature)

    def answer(self, rows: Tensor) -> Tensor:
        """Mean votes [B, K] of descriptors [B, 2E]."""
        cosine = functional.normalize(rows, dim=1) @ self.bank.T
        near, places = cosine.topk(min(int(self.k), len(self.bank)), dim=1)
        share = torch.softmax(near / self.temperature, dim=1)
        return (share[..., None] * self.ballots[places]).sum(dim=1)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in ("bank", "ballots"):  # as many training images as were remembered
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class LinearProbe(FrozenProbe):
    """One linear layer on the pooled vectors of the last four blocks and the mean of the last patch tokens.

    Columns that the chosen reading leaves out have weights of zero. DINOv2's probe (arXiv 2304.07193,
    appendix B.3) on standardised features.
    """

    reads = "blocks"
    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.widths = _widths(encoder)  # of each block, then of the mean token
        self.register_buffer("mean", torch.zeros(sum(self.widths)))
        self.register_buffer("std", torch.ones(sum(self.widths)))
        self.head = nn.Linear(sum(self.widths), outputs)

    def described(self, x: Tensor) -> Tensor:
        """[B, W] of normalised images: pooled vectors of the blocks, early to late, and the mean token."""
        return _blocks(self.encoder, x)

    def answer(self, rows: Tensor) -> Tensor:
        return self.head((rows - self.mean) / self.std)

    def readings(self) -> dict[tuple[int, bool], Tensor]:
        """(blocks, with the mean token) -> which columns are read, float [W]."""
        *blocks, token = self.widths
        found = {}
        for count in sorted({1, len(blocks)}):
            for with_token in (False, True):
                kept = [float(len(blocks) - index <= count) for index in range(len(blocks))]
                parts = [*kept, float(with_token)]
                columns = [torch.full((w,), part) for w, part in zip([*blocks, token], parts, strict=True)]
                found[count, with_token] = torch.cat(columns)
        return found


class Attentive(FrozenProbe):
    """One cross-attention block with one learnt query over frozen tokens, and a linear layer.

    As in V-JEPA (arXiv 2404.08471) and CAE (arXiv 2202.03026): what a masked autoencoder knows is not in the
    mean of its tokens. Reads the pooled vector and every patch token.
    """

    reads = "tokens"

    def __init__(self, encoder: Encoder, outputs: int, heads: int) -> None:
        super().__init__()
        from timm.layers.attention_pool import AttentionPoolLatent

        width = encoder.embed_dim
        fitting = max(n for n in range(1, max(1, heads) + 1) if width % n == 0)
        self.encoder = encoder
        self.norm = nn.LayerNorm(width)
        self.pool = AttentionPoolLatent(width, num_heads=fitting, mlp_ratio=4.0)
        self.out = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def described(self, x: Tensor) -> Tensor:
        """[B, 1 + N, E]: the pooled vector, then the patch tokens."""
        features = self.encoder(x)
        return torch.cat([features.pooled[:, None], features.tokens], dim=1).float()

    def answer(self, rows: Tensor) -> Tensor:
        return self.head(self.out(self.pool(self.norm(rows))))


def _blocks(encoder: Encoder, x: Tensor) -> Tensor:
    found = encoder.last(x, BLOCKS)
    return torch.cat([*(one.pooled for one in found), found[-1].tokens.mean(dim=1)], dim=1).float()


def _widths(encoder: Encoder) -> list[int]:
    """Columns of each part that `_blocks` gives, measured with one blank image."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    weight = next(encoder.parameters())
    size = [2 * side for side in encoder.patch_of(max(encoder.axes))]
    with torch.no_grad():
        blank = torch.zeros(1, encoder.in_channels, *size, device=weight.device, dtype=weight.dtype)
        widths = [one.pooled.shape[1] for one in encoder.last(blank, BLOCKS)]
    for module, training in modes:
        module.training = training
    return [*widths, encoder.embed_dim]
