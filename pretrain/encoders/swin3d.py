"""SwinUNETR's encoder of MONAI: a Swin transformer over windows of a volume, four halvings behind patches.

Hatamizadeh et al., arXiv 2201.01266. Parameter names are those of `monai.networks.nets.SwinUNETR`
(`swinViT.*`), so that weights go both ways with strict=False. Its patches are small (2³) and merged at the
end of each stage: with four stages one token of the final map is 32³ voxels, and `pyramid` has five maps,
each layer-normalised as SwinUNETR hands them to its decoder.

`hide` replaces the small patches below each hidden token, as SimMIM does (arXiv 2111.09886): the mask has
the final grid, so what is hidden is 32³ voxels at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from ...data.errors import ConfigError
from .base import Encoder, Features, Hide
from .rescale import check_rescale, rescaled

STAGES = 4  # more have no name in MONAI


class Swin3D(Encoder):
    """MONAI's SwinTransformer with three axes."""

    @dataclass(kw_only=True)
    class Config:
        """Fields of the `encoder` section."""

        name: str = "swin3d"
        in_channels: int = 1
        patch_size: list[int] = field(default_factory=lambda: [2, 2, 2])  # voxels of a first token
        feature_size: int = 48  # channels of a first token, doubled by each stage
        depths: list[int] = field(default_factory=lambda: [2, 2, 2, 2])  # blocks of each of 1 to 4 stages
        num_heads: list[int] = field(default_factory=lambda: [3, 6, 12, 24])  # likewise
        window: list[int] = field(default_factory=lambda: [7, 7, 7])  # tokens of one attention
        drop_path: float = 0.0  # stochastic depth rate of the last block
        residual: bool = False  # a residual convolution in front of each stage: SwinUNETR v2 and VoCo
        rescale: list[float] | None = None  # [scale, shift(, low, high)] in front; see rescale.py
        downsample: str = "merging"  # as MONAI's published weights; mergingv2: its newer order of channels

    supports_hide = True
    ndim = 3

    def __init__(self, config: Swin3D.Config) -> None:
        super().__init__(config)
        from monai.networks.nets.swin_unetr import SwinTransformer

        self._refuse(config)
        self.swinViT = SwinTransformer(
            in_chans=config.in_channels,
            embed_dim=config.feature_size,
            window_size=tuple(config.window),
            patch_size=tuple(config.patch_size),
            depths=tuple(config.depths),
            num_heads=tuple(config.num_heads),
            drop_path_rate=config.drop_path,
            downsample=config.downsample,
            spatial_dims=3,
            use_v2=config.residual,
        )
        self.count = len(config.depths)
        self.embed_dim = config.feature_size * 2**self.count
        self.patch_size = tuple(side * 2**self.count for side in config.patch_size)
        self.in_channels = config.in_channels
        self.stem = "swinViT.patch_embed.proj.weight"

    @staticmethod
    def _refuse(config: Swin3D.Config) -> None:
        if not 1 <= len(config.depths) <= STAGES or len(config.num_heads) != len(config.depths):
            raise ConfigError(
                f"encoder swin3d: depths {list(config.depths)} and num_heads {list(config.num_heads)} must "
                f"name the same 1 to {STAGES} stages"
            )
        wrong = [h for i, h in enumerate(config.num_heads) if (config.feature_size * 2**i) % h]
        if wrong:
            raise ConfigError(
                f"encoder swin3d: feature_size {config.feature_size} does not divide into {wrong[0]} heads"
            )
        if (
            len(config.patch_size) != 3
            or len(config.window) != 3
            or min(*config.patch_size, *config.window) < 1
        ):
            raise ConfigError("encoder swin3d: patch_size and window have three sides of at least 1")
        check_rescale(config.rescale)
        if config.downsample not in ("merging", "mergingv2"):
            raise ConfigError(f"encoder.downsample: {config.downsample!r} is neither merging nor mergingv2")

    @property
    def token_dim(self) -> int:
        """Channels of the small patches, which `hide` replaces."""
        return int(self.config.feature_size)

    def stages(self) -> Iterable[Any]:
        """MONAI's stages, each a BasicLayer."""
        return (cast(Any, getattr(self.swinViT, f"layers{i + 1}"))[0] for i in range(self.count))

    def residuals(self) -> Iterable[nn.Module | None]:
        """What runs in front of each stage: MONAI's residual block, or nothing."""
        has = self.config.residual
        return (getattr(self.swinViT, f"layers{i + 1}c")[0] if has else None for i in range(self.count))

    def forward(
        self, x: Tensor, keep: Tensor | None = None, pyramid: bool = False, hide: Hide | None = None
    ) -> Features:
        """See `Encoder.forward`; x is [B, C, D, H, W]. `pooled` is the mean of the tokens."""
        grid = self.check(x, keep, pyramid, hide)
        network = cast(Any, self.swinViT)
        x = network.patch_embed(rescaled(x, self.config.rescale))
        if hide is not None:
            x = self._hidden(x, hide, grid)
        x = network.pos_drop(x)
        levels = [network.proj_out(x, True)]
        for first, stage in zip(self.residuals(), self.stages(), strict=True):
            for block in stage.blocks:
                block.use_checkpoint = self.recompute
            x = x if first is None else first(x.contiguous())
            x = stage(x.contiguous())
            levels.append(network.proj_out(x, True))
        tokens = levels[-1].flatten(2).transpose(1, 2)
        return Features(
            pooled=tokens.mean(dim=1), tokens=tokens, grid=grid, pyramid=levels if pyramid else None
        )

    def _hidden(self, x: Tensor, hide: Hide, grid: tuple[int, ...]) -> Tensor:
        """Replace the small patches [B, E, d, h, w] below the hidden tokens."""
        mask = hide.mask.reshape(-1, 1, *grid)
        for axis in (2, 3, 4):
            mask = mask.repeat_interleave(2**self.count, dim=axis)
        return hide.token.reshape(1, -1, 1, 1, 1).to(x.dtype).where(mask, x)

    def units(self) -> list[nn.Module]:
        """See `Encoder.units`."""
        return [block for stage in self.stages() for block in stage.blocks]

    def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        """[patch embedding; each block, with the merging behind its stage in the last one]."""
        depth_of: dict[int, int] = {}
        depth = 0
        for first, stage in zip(self.residuals(), self.stages(), strict=True):
            if first is not None:
                depth_of |= {id(p): depth + 1 for p in first.parameters()}
            for block in stage.blocks:
                depth += 1
                depth_of |= {id(p): depth for p in block.parameters()}
            depth_of |= {id(p): depth for p in stage.downsample.parameters()}
        groups: list[list[tuple[str, nn.Parameter]]] = [[] for _ in range(depth + 1)]
        for name, parameter in self.named_parameters():
            groups[depth_of.get(id(parameter), 0)].append((name, parameter))
        return groups
