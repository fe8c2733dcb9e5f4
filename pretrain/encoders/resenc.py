"""ResEnc: the residual encoder of nnU-Net, in 2D and 3D; the defaults are those of ResEnc-L.

Isensee et al., arXiv 2404.09556. The network is that of dynamic-network-architectures with nnU-Net's settings
(bias, instance norm, leaky ReLU, the norm before each addition starting at zero) and its parameter names, so
that an artefact loads into the `encoder.*` of a ResidualEncoderUNet of nnU-Net or nnssl, and theirs loads
here. The price of its names: nnU-Net registers every layer twice (`conv` and `all_modules.0`), so the file
is twice as large as the network, 0.7 GB for ResEnc-L (90 million parameters).

One token is one cell of the coarsest map, 32³ voxels: a crop of 160³ has 125 of them. The biases of its
convolutions are taken out again by the instance norm behind them and are not trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ...data.errors import ConfigError
from .nnunet_nets import nnunet_part
from .stages import Staged, product

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class ResEnc(Staged):
    """Residual encoder with one map of the pyramid a stage."""

    @dataclass(kw_only=True)
    class Config:
        """Fields of the `encoder` section."""

        name: str = "resenc"
        ndim: int = 3  # spatial axes, 2 or 3
        in_channels: int = 1
        features: list[int] = field(default_factory=lambda: [32, 64, 128, 256, 320, 320])  # channels a stage
        blocks: list[int] = field(default_factory=lambda: [1, 3, 4, 6, 6, 6])  # residual blocks a stage
        strides: list[Any] = field(default_factory=lambda: [1, 2, 2, 2, 2, 2])  # a stage, or one an axis
        kernels: list[Any] = field(default_factory=lambda: [3, 3, 3, 3, 3, 3])  # voxels, likewise
        drop_path: float = 0.0  # stochastic depth rate of all blocks

    def __init__(self, config: ResEnc.Config) -> None:
        super().__init__(config, config.ndim)
        encoder = nnunet_part("resenc", "building_blocks.residual_encoders", "ResidualEncoder")
        he = nnunet_part("resenc", "initialization.weight_init", "InitWeights_He")
        zero_last = nnunet_part("resenc", "initialization.weight_init", "init_last_bn_before_add_to_0")
        stages = len(config.features)
        strides = by_axis(config.strides, stages, config.ndim, "strides")
        if len(config.blocks) != stages:
            raise ConfigError(f"encoder.blocks has {len(config.blocks)} stages, encoder.features {stages}")
        self.encoder = encoder(
            input_channels=config.in_channels,
            n_stages=stages,
            features_per_stage=list(config.features),
            conv_op=_CONV[config.ndim],
            kernel_sizes=by_axis(config.kernels, stages, config.ndim, "kernels"),
            strides=strides,
            n_blocks_per_stage=list(config.blocks),
            conv_bias=True,
            norm_op=_NORM[config.ndim],
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            return_skips=True,
            stochastic_depth_p=config.drop_path,
        )
        self.encoder.apply(he(1e-2))
        self.encoder.apply(zero_last)
        for module in self.encoder.modules():
            if isinstance(module, _CONV[config.ndim]) and module.bias is not None:
                module.bias.requires_grad_(False)
        self.embed_dim = config.features[-1]
        self.patch_size = product(strides, config.ndim)
        self.in_channels = config.in_channels
        self.stem = "encoder.stem.convs.0.conv.weight"

    def chain(self) -> list[list[nn.Module]]:
        """See `Staged.chain`."""
        first, *others = self.encoder.stages
        return [[self.encoder.stem, first], *([stage] for stage in others)]

    def grid(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """See `Encoder.grid`; a single token is refused, because instance norm has nothing to compare."""
        grid = super().grid(spatial)
        if max(grid) == 1:
            double = "×".join(str(2 * side) for side in self.patch_size)
            raise ConfigError(
                f"image of {'×'.join(map(str, spatial))} is one token of encoder resenc, whose instance norm "
                f"needs several: crop {double}, or leave out a stage of encoder.features, blocks and strides"
            )
        return grid


def by_axis(values: Sequence[Any], stages: int, ndim: int, key: str) -> list[list[int]]:
    """One list of `ndim` numbers a stage, from numbers or such lists. Raises ConfigError otherwise."""
    rows = [[int(v)] * ndim if isinstance(v, int) else [int(side) for side in v] for v in values]
    if len(rows) != stages or any(len(row) != ndim or min(row) < 1 for row in rows):
        raise ConfigError(
            f"encoder.{key}: {stages} entries (one a stage of encoder.features), each a number of at least 1 "
            f"or {ndim} of them, not {list(values)}"
        )
    return rows
