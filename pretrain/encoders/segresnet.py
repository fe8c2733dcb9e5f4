"""SegResNet's encoder of MONAI, in 2D and 3D: residual blocks with pre-activation, group or batch norm.

Myronenko, arXiv 1810.11654. Parameter names are MONAI's (`convInit`, `down_layers`), so that weights go both
ways: an artefact loads into `monai.networks.nets.SegResNet` with strict=False, and a trained SegResNet loads
here likewise. One token is one cell of the coarsest map, 8³ voxels with four stages; more stages see
further: with five, [1, 2, 2, 4, 4], a token is 16³. With batch norm it is the encoder of MONAI's SegResNetDS
under other names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from ...data.errors import ConfigError, nearest
from .base import Features, Hide
from .rescale import check_rescale, rescaled
from .stages import Staged

NORMS = ("group", "batch")


class SegResNet(Staged):
    """The downward half of MONAI's SegResNet."""

    @dataclass(kw_only=True)
    class Config:
        """Fields of the `encoder` section."""

        name: str = "segresnet"
        ndim: int = 3  # spatial axes, 2 or 3
        in_channels: int = 1
        filters: int = 16  # channels at full resolution, doubled in each stage
        blocks: list[int] = field(default_factory=lambda: [1, 2, 2, 4])  # residual blocks a stage
        norm: str = "group"  # group | batch, as MONAI's SegResNetDS and CT-FM
        groups: int = 8  # of the group norms
        rescale: list[float] | None = None  # [scale, shift(, low, high)] in front; see rescale.py

    def __init__(self, config: SegResNet.Config) -> None:
        super().__init__(config, config.ndim)
        from monai.networks.nets.segresnet import SegResNet as Network

        check_rescale(config.rescale)
        if config.norm not in NORMS:
            raise ConfigError(f"encoder.norm: unknown norm {config.norm!r}{nearest(config.norm, NORMS)}")
        grouped = config.norm == "group"
        if (grouped and config.filters % config.groups) or not config.blocks or min(config.blocks) < 1:
            raise ConfigError(
                f"encoder segresnet: filters {config.filters} must be a multiple of groups {config.groups}, "
                f"and blocks at least 1 in each stage, not {list(config.blocks)}"
            )
        network = cast(
            Any,
            Network(
                spatial_dims=config.ndim,
                init_filters=config.filters,
                in_channels=config.in_channels,
                norm=("GROUP", {"num_groups": config.groups}) if grouped else "BATCH",
                blocks_down=tuple(config.blocks),
                blocks_up=(),
            ),
        )
        self.convInit = network.convInit
        self.down_layers = network.down_layers
        stages = len(config.blocks)
        self.embed_dim = config.filters * 2 ** (stages - 1)
        self.patch_size = (2 ** (stages - 1),) * config.ndim
        self.in_channels = config.in_channels
        self.stem = "convInit.conv.weight"
        self.convolutional = config.rescale is None  # a hidden place would no longer be zero

    def chain(self) -> list[list[nn.Module]]:
        """See `Staged.chain`."""
        first, *others = self.down_layers
        return [[self.convInit, first], *([layer] for layer in others)]

    def forward(
        self, x: Tensor, keep: Tensor | None = None, pyramid: bool = False, hide: Hide | None = None
    ) -> Features:
        """See `Encoder.forward`."""
        return super().forward(rescaled(x, self.config.rescale), keep, pyramid, hide)
