"""ConvNeXt in 3D, inflated from a 2D ConvNeXt of timm (version 1 or 2) with its weights.

A kernel of k × k becomes depth × k × k, its weights repeated along depth and divided by it (I3D, arXiv
1705.07750, section 2). Depth is padded by its border slices instead of zeros, so that a volume whose slices
are all alike gives exactly what the 2D network gives for one slice, and a single slice does where strides
along depth are 1: training starts from a network that already sees. Parameter names are timm's.

`depth_strides` says how fast depth is halved, [1, 1, 2, 2] for thick slices. Depthwise convolutions of
7 × 7 × 7 are slow on all devices; with the default depth of 3 they take 0.46 of that time (CPU).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...data.errors import ConfigError
from .base import Encoder
from .stages import Staged
from .timm_nets import create_timm, with_user_arguments


class ConvNeXt3D(Staged):
    """Any ConvNeXt of timm over volumes."""

    @dataclass(kw_only=True)
    class Config:
        """Fields of the `encoder` section."""

        name: str = "convnext3d"
        model: str = "convnext_tiny"  # timm name of the 2D network, with or without a tag of weights
        in_channels: int = 1
        # Voxels along depth of one step: of the stem, and of the downsampling before stages 2 to 4.
        depth_strides: list[int] = field(default_factory=lambda: [4, 2, 2, 2])
        kernel_depth: int = 3  # voxels along depth of the depthwise convolutions, odd
        drop_path: float = 0.0  # stochastic depth rate of the last block
        pretrained: bool = False  # start from timm's 2D weights (download), inflated
        kwargs: dict[str, Any] = field(default_factory=dict)  # handed to timm.create_model as they are

    inner = "model."

    def __init__(self, config: ConvNeXt3D.Config) -> None:
        super().__init__(config, 3)
        from timm.models.convnext import ConvNeXt

        if config.kernel_depth < 1 or config.kernel_depth % 2 == 0:
            raise ConfigError(f"encoder.kernel_depth: an odd number, not {config.kernel_depth}")
        if len(config.depth_strides) != 4 or min(config.depth_strides) < 1:
            raise ConfigError(
                f"encoder.depth_strides: four numbers of at least 1, not {list(config.depth_strides)}"
            )
        arguments: dict[str, Any] = {"in_chans": config.in_channels, "num_classes": 0}
        if config.drop_path:
            arguments["drop_path_rate"] = config.drop_path
        flat = create_timm(config.model, with_user_arguments(arguments, config.kwargs), config.pretrained)
        if not isinstance(flat, ConvNeXt):
            raise ConfigError(
                f"encoder convnext3d: {config.model} is no ConvNeXt: choose a convnext* or convnextv2* model"
            )
        self.model = Network(flat, config.depth_strides, config.kernel_depth)
        depth = 1
        for stride in config.depth_strides:
            depth *= stride
        side = int(cast(Any, flat).feature_info[-1]["reduction"])
        self.patch_size = (depth, side, side)
        self.embed_dim = int(flat.num_features)
        self.in_channels = config.in_channels
        self.stem = "model.stem.0.weight"

    def chain(self) -> list[list[nn.Module]]:
        """See `Staged.chain`."""
        first, *middle = self.model.stages
        stages: list[list[nn.Module]] = [[self.model.stem, first], *([stage] for stage in middle)]
        stages[-1].append(self.model.norm_pre)
        return stages

    def pooled(self, final: Tensor) -> Tensor:
        """Mean of the tokens, normalised as in timm's head."""
        return self.model.head["norm"](super().pooled(final))

    def adopt(self, tensors: dict[str, Tensor], source: Encoder) -> list[str]:
        """See `Encoder.adopt`: small 2D models have 1 × 1 convolutions where this one has linear layers."""
        pointwise = [n for n, t in tensors.items() if ".mlp.fc" in n and t.ndim == 4]
        for name in pointwise:
            tensors[name] = tensors[name].flatten(1)
        return [f"{len(pointwise)} 1 × 1 convolutions taken as linear layers"] if pointwise else []


class Network(nn.Module):
    """timm's ConvNeXt `flat` with every layer inflated, under the same names."""

    def __init__(self, flat: Any, strides: list[int], depth: int) -> None:
        super().__init__()
        stem = [_inflated(layer, strides[0], strides[0]) for layer in flat.stem[:1]]
        self.stem = nn.Sequential(*stem, *(_inflated(layer, 3, 1) for layer in flat.stem[1:]))
        self.stages = nn.ModuleList(
            Stage(stage, stride if index else 1, depth)
            for index, (stage, stride) in enumerate(zip(flat.stages, strides, strict=True))
        )
        self.norm_pre = _inflated(flat.norm_pre, 1, 1)
        self.head = nn.ModuleDict({"norm": _over_channels(getattr(flat.head, "norm", nn.Identity()))})


class Stage(nn.Module):
    """Downsampling, where there is one, and blocks."""

    def __init__(self, flat: Any, stride: int, depth: int) -> None:
        super().__init__()
        layers = list(flat.downsample) if isinstance(flat.downsample, nn.Sequential) else []
        self.downsample = nn.Sequential(*(_inflated(layer, stride, stride) for layer in layers))
        self.blocks = nn.Sequential(*(Block(block, depth) for block in flat.blocks))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class Block(nn.Module):
    """Depthwise convolution, norm and MLP over channels, layer scale, residual: [B, C, D, H, W] -> same."""

    def __init__(self, flat: Any, depth: int) -> None:
        super().__init__()
        self.conv_dw = _inflated(flat.conv_dw, depth, 1)
        self.norm = _over_channels(flat.norm)
        self.mlp = MLP(flat.mlp)
        self.gamma = flat.gamma
        self.drop_path = flat.drop_path

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.conv_dw(x).movedim(1, -1)))
        if self.gamma is not None:
            y = y * self.gamma
        return x + self.drop_path(y.movedim(-1, 1))


class MLP(nn.Module):
    """Two linear layers over the last axis, ConvNeXt V2's response norm between them where it has one."""

    def __init__(self, flat: Any) -> None:
        super().__init__()
        self.fc1, self.fc2 = _linear(flat.fc1), _linear(flat.fc2)
        self.act = flat.act
        grn = getattr(flat, "grn", None)
        self.grn = nn.Identity() if grn is None else GlobalResponseNorm3d(grn)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.grn(self.act(self.fc1(x))))


class GlobalResponseNorm3d(nn.Module):
    """Channels compete by their norm over the volume (arXiv 2301.00808, section 3.2): [B, D, H, W, C]."""

    channel_dim = -1
    spatial_dim = (1, 2, 3)

    def __init__(self, flat: Any) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = flat.weight, flat.bias, flat.eps

    def forward(self, x: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=self.spatial_dim, keepdim=True)
        size = size / (size.mean(dim=-1, keepdim=True) + self.eps)
        return x + self.weight * (x * size) + self.bias


class LayerNorm3d(nn.LayerNorm):
    """Layer norm over the channels of [B, C, D, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class DeepConv3d(nn.Conv3d):
    """Convolution that pads depth with the border slices, and height and width with zeros."""

    def forward(self, x: Tensor) -> Tensor:
        depth = cast(tuple[int, ...], self.padding)[0]
        if depth:
            x = functional.pad(x, (0, 0, 0, 0, depth, depth), mode="replicate")
        padding = (0, *cast(tuple[int, ...], self.padding)[1:])
        return functional.conv3d(x, self.weight, self.bias, self.stride, padding, 1, self.groups)


def _inflated(layer: nn.Module, depth: int, stride: int) -> nn.Module:
    """The 3D layer of a 2D one: a convolution of this depth and stride along depth, a norm, or itself."""
    if isinstance(layer, nn.LayerNorm):
        return _over_channels(layer, LayerNorm3d)
    if not isinstance(layer, nn.Conv2d):
        return layer
    if layer.dilation != (1, 1):
        raise ConfigError("encoder convnext3d: leave out kwargs.output_stride, dilation is not inflated")
    deep = DeepConv3d(
        layer.in_channels,
        layer.out_channels,
        (depth, *cast(tuple[int, int], layer.kernel_size)),
        (stride, *cast(tuple[int, int], layer.stride)),
        ((depth - 1) // 2 if stride == 1 else 0, *cast(tuple[int, int], layer.padding)),
        groups=layer.groups,
        bias=layer.bias is not None,
    )
    with torch.no_grad():
        deep.weight.copy_(layer.weight.unsqueeze(2) / depth)
    deep.bias = layer.bias
    return deep


def _over_channels(norm: nn.Module, kind: type[nn.LayerNorm] = nn.LayerNorm) -> nn.Module:
    """timm's layer norm, of whatever layout, as one of this kind with the same parameters."""
    if not isinstance(norm, nn.LayerNorm):
        if isinstance(norm, nn.Identity):
            return norm
        raise ConfigError(f"encoder convnext3d: a {type(norm).__name__} is not inflated: choose a layer norm")
    out = kind(list(norm.normalized_shape), eps=norm.eps)
    out.weight, out.bias = norm.weight, norm.bias
    return out


def _linear(layer: nn.Module) -> nn.Linear:
    """A 1 × 1 convolution, or a linear layer, as a linear layer."""
    weight = cast(Tensor, layer.weight).detach()
    out = nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None)
    with torch.no_grad():
        out.weight.copy_(weight.flatten(1))
    out.bias = cast(nn.Parameter, layer.bias)
    return out
