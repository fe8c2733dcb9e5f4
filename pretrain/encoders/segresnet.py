"""SegResNet's encoder of MONAI, in 2D and 3D: residual blocks with pre-activation and group norm.

Myronenko, arXiv 1810.11654. Parameter names are MONAI's (`convInit`, `down_layers`), so that weights go both
ways: an artefact loads into `monai.networks.nets.SegResNet` with strict=False, and a trained SegResNet loads
here likewise. One token is one cell of the coarsest map, 8³ voxels with four stages; more stages see
further: with five, [1, 2, 2, 4, 4], a token is 16³.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn

from ...data.errors import ConfigError
from .stages import Staged


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
        groups: int = 8  # of the group norms

    def __init__(self, config: SegResNet.Config) -> None:
        super().__init__(config, config.ndim)
        from monai.networks.nets.segresnet import SegResNet as Network

        if config.filters % config.groups or not config.blocks or min(config.blocks) < 1:
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
                norm=("GROUP", {"num_groups": config.groups}),
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

    def chain(self) -> list[list[nn.Module]]:
        """See `Staged.chain`."""
        first, *others = self.down_layers
        return [[self.convInit, first], *([layer] for layer in others)]
