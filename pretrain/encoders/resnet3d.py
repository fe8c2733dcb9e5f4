"""ResNet of MONAI in 3D (and 2D): what MedicalNet and its followers trained.

He et al., arXiv 1512.03385; in 3D Hara et al., arXiv 1711.09577. The network and its parameter names are
those of `monai.networks.nets.ResNet`, which are torchvision's and MedicalNet's too. MedicalNet (arXiv
1904.00625) itself keeps the resolution of its second stage and dilates the last two (`dilated: true`): one
token is 8³ voxels instead of 32³, and a step costs about three times as much. MONAI's own loader leaves the
dilation out, which is another network with the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from ...data.errors import ConfigError
from .base import Features, Hide
from .rescale import check_rescale, rescaled
from .stages import Staged

# Depth -> (block of MONAI, blocks a stage).
DEPTHS: dict[int, tuple[str, list[int]]] = {
    10: ("basic", [1, 1, 1, 1]),
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
    101: ("bottleneck", [3, 4, 23, 3]),
    152: ("bottleneck", [3, 8, 36, 3]),
    200: ("bottleneck", [3, 24, 36, 3]),
}
PLANES = [64, 128, 256, 512]


class ResNet3D(Staged):
    """MONAI's ResNet without its classifier."""

    @dataclass(kw_only=True)
    class Config:
        """Fields of the `encoder` section."""

        name: str = "resnet3d"
        ndim: int = 3  # spatial axes, 2 or 3
        depth: int = 18  # 10 | 18 | 34 | 50 | 101 | 152 | 200
        in_channels: int = 1
        width: float = 1.0  # factor of all channels
        stem_stride: int = 2  # of the first convolution
        shortcut: str = "B"  # where the shape changes: a convolution (B), or subsampling and zeros (A)
        shortcut_bias: bool = False  # of the convolution of B
        dilated: bool = False  # stages 3 and 4 dilated by 2 and 4 instead of halved, as MedicalNet
        rescale: list[float] | None = None  # [scale, shift(, low, high)] in front; see rescale.py

    def __init__(self, config: ResNet3D.Config) -> None:
        super().__init__(config, config.ndim)
        from monai.networks.nets.resnet import ResNet

        if config.depth not in DEPTHS:
            raise ConfigError(f"encoder.depth: {config.depth}: expected one of {list(DEPTHS)}")
        if config.shortcut not in ("A", "B"):
            raise ConfigError(f"encoder.shortcut: {config.shortcut!r} is neither A nor B")
        if config.stem_stride not in (1, 2) or config.width <= 0:
            raise ConfigError(
                f"encoder resnet3d: stem_stride {config.stem_stride} must be 1 or 2, and width "
                f"{config.width} above 0"
            )
        check_rescale(config.rescale)
        block, blocks = DEPTHS[config.depth]
        network = cast(
            Any,
            ResNet(
                block=block,
                layers=blocks,
                block_inplanes=PLANES,
                spatial_dims=config.ndim,
                n_input_channels=config.in_channels,
                conv1_t_stride=config.stem_stride,
                shortcut_type=config.shortcut,
                widen_factor=config.width,
                feed_forward=False,
                bias_downsample=config.shortcut_bias,
                act=("relu", {"inplace": False}),  # it runs as a module of its own, which may be run again
            ),
        )
        self.conv1, self.bn1, self.act, self.maxpool = (
            network.conv1, network.bn1, network.act, network.maxpool
        )  # fmt: skip
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        if config.dilated:
            dilate(self.layer3, 2)
            dilate(self.layer4, 4)
        self.embed_dim = int(PLANES[-1] * config.width) * (4 if block == "bottleneck" else 1)
        side = config.stem_stride * 2 * 2 * (1 if config.dilated else 4)
        self.patch_size = (side,) * config.ndim
        self.in_channels = config.in_channels
        self.stem = "conv1.weight"
        self.convolutional = config.rescale is None  # a hidden place would no longer be zero

    def chain(self) -> list[list[nn.Module]]:
        """See `Staged.chain`."""
        return [
            [self.conv1, self.bn1, self.act],
            [self.maxpool, self.layer1],
            [self.layer2],
            [self.layer3],
            [self.layer4],
        ]

    def forward(
        self, x: Tensor, keep: Tensor | None = None, pyramid: bool = False, hide: Hide | None = None
    ) -> Features:
        """See `Encoder.forward`."""
        return super().forward(rescaled(x, self.config.rescale), keep, pyramid, hide)


def dilate(layer: nn.Module, rate: int) -> None:
    """A stage of MONAI's ResNet at the resolution of its input, its wide kernels dilated by `rate`."""
    for module in layer.modules():
        shortcut = getattr(module, "downsample", None)
        if isinstance(shortcut, partial):
            cast(Any, module).downsample = partial(shortcut.func, **{**shortcut.keywords, "stride": 1})
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            convolution = cast(Any, module)
            ones: Sequence[int] = (1,) * len(convolution.kernel_size)
            convolution.stride = ones
            if max(convolution.kernel_size) > 1:
                convolution.dilation = tuple(rate * one for one in ones)
                convolution.padding = convolution.dilation
