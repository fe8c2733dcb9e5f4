"""What the convolutional encoders share: a chain of stages, whose outputs are the pyramid.

`tokens` are the cells of the coarsest map and `pooled` is their mean, taken by a pooling module, so that it
counts visible cells only under `sparse`. Stages may be computed again in the backward pass (`recompute`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...data.errors import ConfigError
from .base import Encoder, Features, Hide
from .sparse import recomputed

_MEAN = {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


class Staged(Encoder):
    """Base of encoders that are a chain of convolutional stages."""

    convolutional = True

    def __init__(self, config: Any, ndim: int) -> None:
        super().__init__(config)
        if ndim not in _MEAN:
            raise ConfigError(f"encoder.ndim {ndim}: give 2 or 3")
        self.ndim = ndim
        self.mean = _MEAN[ndim](1)

    def chain(self) -> list[list[nn.Module]]:
        """Modules in the order in which they run; one map of the pyramid behind each list."""
        raise NotImplementedError

    def pooled(self, final: Tensor) -> Tensor:
        """[B, E, *grid] -> [B, E]."""
        return self.mean(final).flatten(1)

    def forward(
        self, x: Tensor, keep: Tensor | None = None, pyramid: bool = False, hide: Hide | None = None
    ) -> Features:
        """See `Encoder.forward`. `pooled` is the mean of the tokens."""
        grid = self.check(x, keep, pyramid, hide)
        levels: list[Tensor] = []
        for stage in self.chain():
            for module in stage:
                again = self.recompute and torch.is_grad_enabled()
                x = recomputed(self, module, x) if again else module(x)
            levels.append(x)
        return Features(
            pooled=self.pooled(x),
            tokens=x.flatten(2).transpose(1, 2),
            grid=grid,
            pyramid=levels if pyramid else None,
        )

    def units(self) -> list[nn.Module]:
        """See `Encoder.units`: the stages, which are also what `recompute` computes again as one."""
        return [
            module
            for stage in self.chain()
            for module in stage
            if next(module.parameters(), None) is not None
        ]

    def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        """One group a module of the chain, the stem being the first; what is behind it is the last."""
        modules = [module for stage in self.chain() for module in stage]
        depth_of = {id(p): depth for depth, module in enumerate(modules) for p in module.parameters()}
        groups: list[list[tuple[str, nn.Parameter]]] = [[] for _ in range(len(modules) + 1)]
        for name, parameter in self.named_parameters():
            groups[depth_of.get(id(parameter), len(modules))].append((name, parameter))
        return [group for group in groups if group]


def product(strides: Sequence[Sequence[int]], ndim: int) -> tuple[int, ...]:
    """Pixels of one cell behind all strides."""
    out = [1] * ndim
    for stride in strides:
        out = [a * b for a, b in zip(out, stride, strict=True)]
    return tuple(out)
