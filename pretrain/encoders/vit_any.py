"""One transformer for pictures and volumes: two patch embeddings, everything behind them shared.

A picture is a volume of depth 1: positions are those of a 1 × H × W grid, and rotations along an axis of
length 1 turn nothing, so that the blocks need not know which of the two they see. With `data.classes` of 2D
and of 3D sources the whole collection trains one encoder. The price is that a batch holds one kind only, and
that the patch embedding of the other kind gets a gradient of zero in that step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ...data.errors import ConfigError
from .base import Encoder
from .patches import PatchEmbed
from .vit3d import ViT3D


class ViTAny(ViT3D):
    """Plain transformer over the patches of a picture or of a volume."""

    @dataclass(kw_only=True)
    class Config(ViT3D.Config):
        """Fields of `ViT3D.Config`, whose `patch_size` is that of volumes, and the patch of pictures."""

        name: str = "vit_any"
        patch_size_2d: list[int] = field(default_factory=lambda: [16, 16])  # pixels (H, W)
        positions: str = "both"

    def __init__(self, config: ViTAny.Config) -> None:
        if len(config.patch_size_2d) != 2 or min(config.patch_size_2d) < 1:
            raise ConfigError(
                f"encoder.patch_size_2d: two sides of at least 1, not {list(config.patch_size_2d)}"
            )
        super().__init__(config)
        self.patch_size_2d = (config.patch_size_2d[0], config.patch_size_2d[1])
        self.patch_embed_2d = PatchEmbed(self.patch_size_2d, config.in_channels, self.embed_dim)

    @property
    def axes(self) -> tuple[int, ...]:
        """See `Encoder.axes`."""
        return (2, 3)

    @property
    def stems(self) -> tuple[str, ...]:
        """See `Encoder.stems`."""
        return (self.stem, "patch_embed_2d.proj.weight")

    def patch_of(self, ndim: int) -> tuple[int, ...]:
        """See `Encoder.patch_of`."""
        return self.patch_size_2d if ndim == 2 else self.patch_size

    def _patches(self, x: Tensor, keep: Tensor | None) -> Tensor:
        used, other = self.patch_embed, self.patch_embed_2d
        if x.ndim == 4:
            used, other = other, used
        # Distributed training takes a parameter without a gradient for an error: the other stem gets zeros.
        unused = sum(parameter.flatten()[0] for parameter in other.parameters())
        return used(x, keep) + 0.0 * unused

    def adopt(self, tensors: dict[str, Tensor], source: Encoder) -> list[str]:
        """See `Encoder.adopt`: a patch embedding of one kind of image starts both.

        A picture is taken for a volume that is alike along depth, so the weights are summed over depth.
        """
        if "patch_embed_2d.proj.weight" in tensors or "patch_embed.proj.weight" not in tensors:
            return []
        done = super().adopt(tensors, source)
        for part in ("weight", "bias"):
            tensor = tensors[f"patch_embed.proj.{part}"]
            tensors[f"patch_embed_2d.proj.{part}"] = tensor.sum(2) if tensor.ndim == 5 else tensor
        return [*done, "patch_embed: starts the stems of pictures and of volumes"]
