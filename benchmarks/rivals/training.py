"""Train a rival as its example does: shuffled epochs, a transform for each picture, one process.

Pictures lie decoded in memory, so that no decoding is on a rival's clock (medloom's own runs read and decode
from shards on theirs).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from .base import Rival


def train(rival: Rival, pictures: Sequence[np.ndarray], *, steps: int, seed: int) -> list[float]:
    """Run `steps` optimiser steps; returns the losses. Raises FloatingPointError: a loss is not finite."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (transforms of the libraries draw from the global generators)
    torch.manual_seed(seed)
    batch = min(rival.batch, len(pictures))
    optimiser, scheduler = rival.optimiser(batch)
    losses: list[float] = []
    order: list[int] = []
    rival.train()
    for step in range(steps):
        if len(order) < batch:  # the rest of an epoch is dropped, as the libraries' loaders do
            order = torch.randperm(len(pictures)).tolist()
        chosen, order = order[:batch], order[batch:]
        made = [rival.views(Image.fromarray(pictures[i])) for i in chosen]
        views = [torch.stack(view) for view in zip(*made, strict=True)]
        losses.append(update(rival, views, step, optimiser))
        if scheduler is not None:
            scheduler.step()
        if not np.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss is {losses[-1]} at step {step + 1} of {steps}")
    return losses


def update(rival: Rival, views: Sequence[torch.Tensor], step: int, optimiser: torch.optim.Optimizer) -> float:
    """One optimiser step on given views; returns the loss."""
    loss = rival.loss(views, step)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    rival.before_update(step, optimiser)
    if rival.clip is not None:
        torch.nn.utils.clip_grad_norm_(rival.parameters(), rival.clip)
    optimiser.step()
    rival.after_update(step)
    return float(loss.detach())
