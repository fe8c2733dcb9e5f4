"""Self-distillation with no labels: the student's views agree with the teacher's about soft prototypes.

Caron et al., arXiv 2104.14294, equations 1 to 3. With 65,536 prototypes the logits are the largest tensors of
a step (ten views of 64 images: 168 MB), so the cross-entropy with soft targets is one function with its own
backward pass: it keeps the logits and one number a row instead of their log-softmax, works on some rows at a
time, and sums the teacher's views before it multiplies, not after.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import ranks
from .precision import exact, wide


class Piece(NamedTuple):
    """Rows first:last of the logits, whose targets are the rows from `at`."""

    first: int
    last: int
    at: int


PIECE = 1024  # rows whose softmax is in memory at a time


def soft_cross_entropy(
    logits: Tensor, target: Tensor, temperature: float = 1.0, pieces: Sequence[Piece] | None = None
) -> Tensor:
    """-sum_k target_k log softmax(logits / temperature)_k for each row: [R, K], [R, K] -> [R].

    In float32 at least. Rows of `target` need not sum to 1; no gradient goes into it.

    Args:
        pieces: which rows meet which targets, where these are not the same rows; they cover [0, R).
    """
    if pieces is None:
        starts = range(0, len(logits), PIECE)
        pieces = [Piece(start, min(start + PIECE, len(logits)), start) for start in starts]
    arguments = wide(logits), wide(target.detach()), temperature, pieces
    return _SoftCrossEntropy.apply(*arguments)  # type: ignore[return-value]


def dino_loss(student: Tensor, teacher: Tensor, temperature: float = 0.1) -> Tensor:
    """Mean over images and pairs of views of the cross-entropy between teacher and student (equation 3).

    View i of the student and view i of the teacher are the same pixels and make no pair.

    Args:
        student: logits [V, B, K], the views of the teacher first.
        teacher: probabilities [G, B, K], G <= V, at least one pair.
        temperature: of the student.

    Returns:
        scalar, the mean over the B images of this rank.
    """
    (views, images, _), seen = student.shape, len(teacher)
    everything = wide(teacher).sum(dim=0, keepdim=True)
    # The sum over pairs is the sum over the student's views of the cross-entropy with the sum of the other
    # views' targets: block g of `targets` for view g of the teacher's, the last block for all others.
    targets = torch.cat([everything - wide(teacher), everything]).flatten(0, 1)
    pieces = [Piece(v * images, (v + 1) * images, min(v, seen) * images) for v in range(views)]
    rows = soft_cross_entropy(student.flatten(0, 1), targets, temperature, pieces)
    return rows.sum() / ((seen * views - seen) * images)


def entropy_share(probabilities: Tensor) -> Tensor:
    """Mean entropy of the rows [..., K], as a share of its largest value log K: scalar from 0 to 1.

    A teacher whose targets have a share near 1 says nothing (uniform collapse); near 0 with all rows alike
    it says always the same.
    """
    k = probabilities.shape[-1]
    entropy = torch.special.entr(wide(probabilities)).sum(dim=-1).mean()
    return entropy / math.log(max(k, 2))


class Centre(nn.Module):
    """Running mean of the teacher's logits, taken from them before the softmax (equation 4).

    `forward` only looks; `observe` notes the logits of a micro-batch and `update` moves the centre once an
    optimiser step, so that a step can be computed again and accumulation does not move it faster.
    """

    value: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(prototypes))
        self._seen: list[Tensor] = []

    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """softmax((logits - centre) / temperature), float32 [..., K]."""
        return ((logits.float() - self.value) / temperature).softmax(dim=-1)

    @torch.no_grad()
    def observe(self, logits: Tensor, weight: Tensor | None = None) -> None:
        """Note the rows of logits [..., K]; `weight` [...] counts them, 0 leaves a row out."""
        rows = logits.float().flatten(0, -2)
        count = torch.ones_like(rows[:, 0]) if weight is None else (weight.flatten() > 0).float()
        with exact(rows):
            self._seen.append(torch.cat([count @ rows, count.sum()[None]]))

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the mean of all rows noted since the last update, over all ranks."""
        if not self._seen:
            return
        seen = ranks.total(torch.stack(self._seen).sum(dim=0))
        self._seen.clear()
        self.value.lerp_(seen[:-1] / seen[-1].clamp_min(1.0), 1.0 - self.momentum)


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, temperature: float, pieces: Sequence[Piece]
    ) -> Tensor:
        normaliser, loss = torch.empty_like(logits[:, 0]), torch.empty_like(logits[:, 0])
        mass = target.sum(dim=1)
        for first, last, at in pieces:
            scaled = logits[first:last] / temperature
            aim = slice(at, at + last - first)
            normaliser[first:last] = scaled.logsumexp(dim=1)
            loss[first:last] = normaliser[first:last] * mass[aim] - scaled.mul_(target[aim]).sum(dim=1)
        ctx.save_for_backward(logits, target, normaliser, mass)
        ctx.rest = temperature, pieces
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        logits, target, normaliser, mass = ctx.saved_tensors
        temperature, pieces = ctx.rest
        gradient, outer = torch.empty_like(logits), (gradients[0] / temperature)[:, None]
        for first, last, at in pieces:
            part, aim = gradient[first:last], slice(at, at + last - first)
            torch.div(logits[first:last], temperature, out=part)
            part.sub_(normaliser[first:last, None]).exp_().mul_(mass[aim, None])
            part.sub_(target[aim]).mul_(outer[first:last])
        return gradient, None, None, None
