"""What a rival method is: views of a picture, a loss of a batch of views, an optimiser with its schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Size:
    """The network and the pictures, the same for all contenders. Defaults: what two CPU cores can train."""

    picture: int = 64  # pixels a side of a global view
    local: int = 32  # of a local view
    locals: int | None = None  # local views of an image; None: as the method's own example has
    patch: int = 8
    dim: int = 192
    depth: int = 6
    heads: int = 3
    decoder: tuple[int, int, int] | None = None  # width, blocks, heads of MAE; None: as the example has
    projector: tuple[int, int] | None = None  # hidden and output channels of SimCLR; None: as the example has
    head: tuple[int, int, int] | None = (
        None  # hidden, bottleneck, prototypes of DINO; None: as the example has
    )
    extra: dict[str, Any] = field(default_factory=dict)  # more arguments for timm

    def vit(self, **arguments: Any) -> nn.Module:
        """timm's plain transformer without a classifier, with weights of torch's current random state."""
        import timm

        return timm.create_model(
            "vit_tiny_patch16_224", img_size=self.picture, patch_size=self.patch, embed_dim=self.dim,
            depth=self.depth, num_heads=self.heads, num_classes=0, dynamic_img_size=True,
            **self.extra, **arguments,
        )  # fmt: skip


class Rival(nn.Module):
    """One method of another library around a timm transformer."""

    batch: int = 128  # samples a step in the learning benchmark
    clip: float | None = None  # largest gradient norm
    settings: str  # where its numbers come from, for the table

    def __init__(self, size: Size, steps: int) -> None:
        """Args: size: see `Size`; steps: of the whole run, for the schedules."""
        super().__init__()
        self.size, self.steps = size, steps

    def views(self, picture: Image) -> list[Tensor]:
        """Augmented float views [3, h, w] of one picture, as the library makes them."""
        raise NotImplementedError

    def loss(self, views: Sequence[Tensor], step: int) -> Tensor:
        """Loss of a batch: one tensor [B, 3, h, w] for each view, in the order of `views`."""
        raise NotImplementedError

    def optimiser(self, batch: int) -> tuple[torch.optim.Optimizer, Any]:
        """The optimiser and its scheduler, stepped after every optimiser step (None: a constant rate)."""
        raise NotImplementedError

    def before_update(self, step: int, optimiser: torch.optim.Optimizer) -> None:
        """Change gradients or settings before optimiser step `step`."""

    def after_update(self, step: int) -> None:
        """Follow the weights after optimiser step `step`."""

    def released(self) -> nn.Module:
        """The timm network that is scored."""
        raise NotImplementedError
