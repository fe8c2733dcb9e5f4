"""What is put on an encoder for one answer an image: a classifier, and probes of frozen features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..pretrain.encoders.base import Encoder, Features


def summary(features: Features) -> Tensor:
    """Image descriptor [B, 2E]: the pooled vector and the mean of the patch tokens."""
    return torch.cat([features.pooled, features.tokens.mean(dim=1)], dim=1)


class Classifier(nn.Module):
    """Encoder -> [B, classes] logits, from `summary`, by one linear layer behind a LayerNorm."""

    def __init__(self, encoder: Encoder, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(2 * encoder.embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * encoder.embed_dim, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of normalised images [B, C, *spatial]."""
        return self.head(self.dropout(self.norm(summary(self.encoder(x)))))


class FrozenProbe(nn.Module):
    """A head on a frozen encoder, in two steps, so that the first is done once for all probes (features.py).

    `reads` names what `described` takes from the encoder; probes with one name read the same rows.
    """

    encoder: Encoder
    reads: str = "summary"
    settled: bool = False  # `answer` gives predictions, and not what a task's `activate` takes

    def described(self, x: Tensor) -> Tensor:
        """Rows [B, ...] of normalised images [B, C, *spatial]; depends on the encoder alone."""
        return summary(self.encoder(x)).float()

    def answer(self, rows: Tensor) -> Tensor:
        """Logits [B, outputs] of rows [B, ...]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, outputs] of normalised images [B, C, *spatial]."""
        return self.answer(self.described(x))


class LinearClassifier(FrozenProbe):
    """Frozen-feature probe: standardised `summary` -> [B, classes] logits; the layer is fitted, not trained.

    `mean`, `std` and `head` come from the logistic regression of `protocols.logistic`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", torch.zeros(2 * encoder.embed_dim))
        self.register_buffer("std", torch.ones(2 * encoder.embed_dim))
        self.head = nn.Linear(2 * encoder.embed_dim, classes)

    def answer(self, rows: Tensor) -> Tensor:
        return self.head((rows - self.mean) / self.std)
