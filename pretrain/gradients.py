"""Gradient norms by depth, and clipping, in one pass and without waiting for the device.

The norms of all parameters are needed for clipping anyway; sums of their squares over a few groups show where
learning stalls (a norm near 0) or blows up. Encoders of any depth give the same six names: embedding, four
quarters of the blocks, and what the objective trains.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .encoders.base import Encoder
from .scale.sharding import local, norm_over_shards

QUARTERS = 4


class GradientNorms:
    """The trained parameters of encoder and objective, by depth."""

    def __init__(self, encoder: Encoder, objective: nn.Module) -> None:
        embedding, *blocks = [[p for _, p in layer] for layer in encoder.layer_groups()]
        groups: dict[str, list[nn.Parameter]] = {"embedding": embedding}
        for number, block in enumerate(blocks):
            quarter = 1 + number * QUARTERS // max(QUARTERS, len(blocks))
            groups.setdefault(f"blocks_{quarter}", []).extend(block)
        groups["objective"] = list(objective.parameters())
        trained = {name: [p for p in group if p.requires_grad] for name, group in groups.items()}
        self.groups = {name: group for name, group in trained.items() if group}

    @torch.no_grad()
    def clip(self, limit: float | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Scale all gradients so that their global norm is at most `limit`; None: leave them.

        Returns:
            The norm before clipping (scalar on the device), and {"grad_norm/<group>": the norm of a group}.
            Parameters without a gradient count as zero.
        """
        held = {name: [p for p in group if p.grad is not None] for name, group in self.groups.items()}
        parameters = [p for group in held.values() for p in group]
        if not parameters:
            return torch.zeros(()), {}
        gradients: list[Tensor] = [local(p.grad) for p in parameters if p.grad is not None]
        norms = torch.stack([norm.float() for norm in torch._foreach_norm(gradients)])
        norms = norm_over_shards(norms, parameters[0])
        total = torch.linalg.vector_norm(norms)
        if limit is not None:  # torch's clip_grads_with_norm_, of the parts that this rank holds
            torch._foreach_mul_(gradients, torch.clamp(limit / (total + 1e-6), max=1.0))
        parts = norms.split([len(group) for group in held.values()])
        return total, {
            f"grad_norm/{name}": torch.linalg.vector_norm(part)
            for name, part in zip(held, parts, strict=True)
        }
