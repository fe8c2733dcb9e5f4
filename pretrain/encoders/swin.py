"""2D windowed transformers of timm: Swin and Swin V2, for any image size that is a multiple of 32.

A pyramid like that of a convolutional network, from attention in windows. timm's classes are used with their
parameter names, as in `vit`. Windows need the whole grid, so tokens cannot be left out (`keep`); they can be
replaced behind the patch embedding (`hide`), which is how SimMIM trains Swin: the mask is given on the
coarsest grid and holds for all the finer tokens inside. Window masks are computed for the image at hand, a
hundredth of a step. Images smaller than `img_size` waste windows on padding: set `img_size` to the crop.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from ...data.errors import ConfigError
from .base import Encoder, Features, Hide
from .blocks import run_blocks
from .patches import replace
from .timm_nets import create_timm, describe_for_timm, groups_of_timm, with_user_arguments


class Swin(Encoder):
    """Any timm SwinTransformer or SwinTransformerV2."""

    @dataclass(kw_only=True)
    class Config:
        """Fields of the `encoder` section."""

        name: str = "swin"
        model: str = "swin_tiny_patch4_window7_224"  # timm name, with or without a tag of weights
        in_channels: int = 3
        img_size: int | None = None  # pixels a side for which windows are laid out; None: the model's own
        drop_path: float = 0.0  # stochastic depth rate of the last block
        pretrained: bool = False  # start from timm's weights (download)
        kwargs: dict[str, Any] = field(default_factory=dict)  # handed to timm.create_model as they are

    supports_hide = True
    ndim = 2
    inner = "model."

    def __init__(self, config: Swin.Config) -> None:
        super().__init__(config)
        self.model = create_timm(config.model, self._arguments(), config.pretrained)
        from timm.models.swin_transformer import SwinTransformer
        from timm.models.swin_transformer_v2 import SwinTransformerV2

        if not isinstance(self.model, SwinTransformer | SwinTransformerV2):
            raise ConfigError(
                f"encoder swin: {config.model} is a timm {type(self.model).__name__}: choose a swin_* or "
                "swinv2_* model, or encoder.name=vit or convnet"
            )
        patch: Any = self.model.patch_embed.patch_size
        self.shrink = 2 ** (len(self.model.layers) - 1)  # of the grid, from the first stage to the last
        self.patch_size = (int(patch[0]) * self.shrink, int(patch[1]) * self.shrink)
        self.embed_dim = int(self.model.num_features)
        self.in_channels = config.in_channels
        self.stem = "model.patch_embed.proj.weight"

    @property
    def token_dim(self) -> int:
        """See `Encoder.token_dim`: channels of the first stage."""
        return int(cast(Any, self.model).patch_embed.proj.out_channels)

    def _arguments(self) -> dict[str, Any]:
        config: Swin.Config = self.config
        arguments: dict[str, Any] = {
            "in_chans": config.in_channels,
            "num_classes": 0,
            "strict_img_size": False,
            "drop_path_rate": config.drop_path,  # timm's own default is 0.1
        }
        if config.img_size is not None:
            arguments["img_size"] = config.img_size
        return with_user_arguments(arguments, config.kwargs)

    def forward(
        self, x: Tensor, keep: Tensor | None = None, pyramid: bool = False, hide: Hide | None = None
    ) -> Features:
        """See `Encoder.forward`; x is [B, C, H, W]. `pooled` is what timm's own `model(x)` gives.

        `pyramid` holds all stages, fine to coarse, the last one behind the final norm.
        """
        grid = self.check(x, keep, pyramid, hide)
        model = cast(Any, self.model)
        tokens = replace(model.patch_embed(x), None if hide is None else self._finer(hide, grid))
        levels: list[Tensor] = []
        for stage in model.layers:
            tokens = run_blocks(stage.blocks, stage.downsample(tokens), recompute=self.recompute)[0]
            levels.append(tokens)
        levels[-1] = tokens = model.norm(tokens)  # [B, H, W, E]
        return Features(
            pooled=model.forward_head(tokens, pre_logits=True),
            tokens=tokens.flatten(1, 2),
            grid=grid,
            pyramid=[level.permute(0, 3, 1, 2) for level in levels] if pyramid else None,
        )

    def _finer(self, hide: Hide, grid: tuple[int, ...]) -> Hide:
        """A mask over the grid of the last stage, for the tokens of the first."""
        mask = hide.mask.reshape(-1, *grid)
        for axis in (1, 2):
            mask = mask.repeat_interleave(self.shrink, dim=axis)
        return Hide(mask, hide.token)

    def units(self) -> list[nn.Module]:
        """See `Encoder.units`."""
        return [block for stage in cast(Any, self.model).layers for block in stage.blocks]

    def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        """timm's own grouping by block: [patch embedding, block 0, ..., last norm]."""
        return groups_of_timm(self, coarse=False)

    def to_file(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Encoder.to_file`.

        Reading a file without a classifier, timm takes it for one of the first Swin release, whose merging of
        patches stood at the end of a stage, and moves it to the next. So it is written as that release did.
        """
        return {_moved(name, -1): tensor for name, tensor in tensors.items()}

    def from_file(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See `Encoder.from_file`; timm's own first stage has no merging."""
        if not any(name.startswith("layers.0.downsample.") for name in tensors):
            return tensors
        return {_moved(name, 1): tensor for name, tensor in tensors.items()}

    def timm_config(self) -> dict[str, Any]:
        """See `Encoder.timm_config`."""
        return describe_for_timm(self, self._arguments())


def _moved(name: str, by: int) -> str:
    """The name of a merging of patches in a stage further on."""
    return re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + by}.downsample.", name)
