"""Can an objective learn 32 images by heart? The share of its first loss that is left after some steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from medloom.pretrain.encoders import Encoder
from medloom.pretrain.objectives import Batch, Objective
from torch import Tensor


def blobs(count: int, spatial: Sequence[int], channels: int = 1, seed: int = 0) -> Tensor:
    """Smooth random images, mean 0 and variance about 1: float32 [count, channels, *spatial]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, *[max(2, s // 4) for s in spatial], generator=generator)
    mode = "bilinear" if len(spatial) == 2 else "trilinear"
    smooth = torch.nn.functional.interpolate(coarse, size=tuple(spatial), mode=mode, align_corners=False)
    return smooth / smooth.std()


def overfit(
    objective: Objective,
    encoder: Encoder,
    spatial: Sequence[int],
    *,
    steps: int = 80,
    lr: float = 2e-3,
    images: int = 32,
    batch: Batch | None = None,
) -> tuple[float, float, list[float]]:
    """Train on the same 32 images, in the order in which a run calls the hooks.

    Args:
        batch: labels, masks and the like for the images; image and position are set here.

    Returns:
        (mean loss of the first 3 steps, of the last 3, all losses).
    """
    torch.manual_seed(0)
    x = blobs(images, spatial, encoder.in_channels)
    parameters = [p for m in (encoder, objective) for p in m.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    encoder.train()
    objective.train()
    losses: list[float] = []
    for step in range(steps):
        given = batch or Batch(image=x, position=torch.arange(images), seed=0)
        given.image, given.position, given.seed = x, torch.arange(images), 0
        given.step, given.steps = step, steps
        optimiser.zero_grad()
        loss = objective.step(given, encoder).loss
        loss.backward()
        objective.before_update(step, steps, encoder)
        torch.nn.utils.clip_grad_norm_(parameters, 3.0)
        optimiser.step()
        objective.after_update(step, steps, encoder)
        losses.append(float(loss.detach()))
    return sum(losses[:3]) / 3, sum(losses[-3:]) / 3, losses
