"""Losses of labels in several heads: a softmax over the classes of a sample's own head, none other.

A head is what one dataset labels. Its classes are some columns of one output layer, so that a sample of one
dataset says nothing of the classes of another, which may well be in the picture. Target -1 is unknown.

Over several ranks: each loss is a sum over what is known here, divided by the mean number over the ranks;
the mean of the ranks' losses is then the mean over all that is known, as the rule in `ranks.py` asks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .. import ranks


def head_logits(logits: Tensor, target: Tensor, heads: Tensor) -> Tensor:
    """Logits [B, C, ...] in float32, minus infinity for the classes of other heads than the sample's.

    Args:
        target: int64 [B, ...], class of each sample or voxel; all known ones of a sample are of one head.
        heads: int64 [C], head of each class. A sample of which nothing is known has that of class 0.
    """
    own = heads[target.flatten(1).amax(dim=1).clamp_min(0)] if target.ndim > 1 else heads[target.clamp_min(0)]
    foreign = own[:, None] != heads[None]
    return logits.float().masked_fill(foreign.view(*foreign.shape, *[1] * (logits.ndim - 2)), -torch.inf)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over what is known of -log softmax(logits)[target]; 0 where nothing is.

    Args:
        logits: [B, C, ...], see `head_logits`.
        target: int64 [B, ...], -1 unknown.
    """
    known = target >= 0
    each = functional.cross_entropy(logits.float(), target.clamp_min(0), reduction="none")
    return _mean(torch.where(known, each, 0.0).sum(), known.sum())


def dice_loss(logits: Tensor, target: Tensor, background: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - soft Dice, mean over the structures that each sample shows (nnU-Net's loss, arXiv 1809.10486).

    For a structure c in a sample: (2 sum p_c t_c + s) / (sum p_c + sum t_c + s), sums over its known voxels.
    Structures that a crop does not show are left to the cross entropy: of a hundred, few are in a crop.

    Args:
        logits: [B, C, *spatial], see `head_logits`.
        target: int64 [B, *spatial], -1 unknown.
        background: bool [C], classes that count for nothing here.
        smooth: s, in voxels.
    """
    known = (target >= 0).flatten(1).float()
    index = target.clamp_min(0).flatten(1)
    p = logits.float().flatten(2).softmax(dim=1)
    zero = p.new_zeros(p.shape[:2])
    truth = zero.scatter_add(1, index, known)
    both = zero.scatter_add(1, index, p.gather(1, index.unsqueeze(1)).squeeze(1) * known)
    predicted = (p * known.unsqueeze(1)).sum(dim=2)
    shown = (truth > 0) & ~background
    dice = (2 * both + smooth) / (predicted + truth + smooth)
    return _mean(torch.where(shown, 1 - dice, 0.0).sum(), shown.sum())


def _mean(total: Tensor, count: Tensor) -> Tensor:
    """This rank's sum over the mean count of the ranks; 0 where none counts anywhere."""
    return total / (ranks.total(count.float()) / ranks.world()).clamp_min(1 / ranks.world())
