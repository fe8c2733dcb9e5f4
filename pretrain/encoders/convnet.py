"""2D convolutional encoders of timm: ConvNeXt, ResNet, RegNet, EfficientNet and their like.

timm's full model is used (without its classifier), not the `features_only` wrapper, because the wrapper
renames parameters: this way an artefact is read by plain `timm.create_model("local-dir:FOLDER")`. `tokens`
are the coarsest feature map, one for each 32 × 32 pixels as a rule; `pyramid` holds all stages, fine to
coarse. Masked objectives blank the input, or run the network under `sparse` (ConvNeXt, ResNet and other
families without attention or gates): a convolution computes everything, so a step costs what a step without
mask costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...data.errors import ConfigError
from .base import Encoder, Features, Hide
from .sparse import recomputed, unfit
from .timm_nets import create_timm, describe_for_timm, groups_of_timm, with_user_arguments


class ConvNet(Encoder):
    """Any convolutional timm model with `forward_intermediates`."""

    @dataclass(kw_only=True)
    class Config:
        """Fields of the `encoder` section."""

        name: str = "convnet"
        model: str = "convnext_tiny"  # timm name, with or without a tag of weights
        in_channels: int = 3
        drop_path: float = 0.0  # stochastic depth rate of the last block
        pretrained: bool = False  # start from timm's weights (download)
        kwargs: dict[str, Any] = field(default_factory=dict)  # handed to timm.create_model as they are

    ndim = 2
    inner = "model."

    def __init__(self, config: ConvNet.Config) -> None:
        super().__init__(config)
        self.model = create_timm(config.model, self._arguments(), config.pretrained)
        model = cast(Any, self.model)
        if not hasattr(model, "forward_intermediates") or hasattr(model, "patch_embed"):
            raise ConfigError(
                f"encoder convnet: {config.model} is not a convolutional network with stages: "
                "choose a convnext*, resnet* or regnet* model, or encoder.name=vit"
            )
        if not getattr(model, "feature_info", None):
            raise ConfigError(f"encoder convnet: timm does not describe the stages of {config.model}")
        stride = int(model.feature_info[-1]["reduction"])
        self.embed_dim = int(model.num_features)
        self.patch_size = (stride, stride)
        self.in_channels = config.in_channels
        self.stem = self._first_convolution()
        self.convolutional = unfit(self.model) is None

    def _arguments(self) -> dict[str, Any]:
        config: ConvNet.Config = self.config
        arguments: dict[str, Any] = {"in_chans": config.in_channels, "num_classes": 0}
        if config.drop_path:
            arguments["drop_path_rate"] = config.drop_path
        return with_user_arguments(arguments, config.kwargs)

    def _first_convolution(self) -> str:
        """Name of the first convolution's weight, which meets the image channels."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                return f"{name}.weight"
        raise ConfigError(f"encoder convnet: {self.config.model} has no convolution: choose encoder.name=vit")

    def forward(
        self, x: Tensor, keep: Tensor | None = None, pyramid: bool = False, hide: Hide | None = None
    ) -> Features:
        """See `Encoder.forward`; x is [B, C, H, W]. `pooled` is what timm's own `model(x)` gives."""
        grid = self.check(x, keep, pyramid, hide)
        model = cast(Any, self.model)
        with self._recomputing() if self.recompute and torch.is_grad_enabled() else nullcontext():
            final, levels = model.forward_intermediates(x)
        if final.shape[2:] != grid:
            raise ConfigError(f"encoder {self.config.model}: grid {tuple(final.shape[2:])}, expected {grid}")
        return Features(
            pooled=model.forward_head(final, pre_logits=True),
            tokens=final.flatten(2).transpose(1, 2),
            grid=grid,
            pyramid=list(levels) if pyramid else None,
        )

    def _stages(self) -> list[nn.Module]:
        """timm's stages that are made of blocks."""
        info = cast(Any, self.model).feature_info
        stages = [self.model.get_submodule(level["module"]) for level in info]
        return [stage for stage in stages if next(stage.children(), None) is not None]

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Within it each stage is computed again in the backward pass.

        timm's own switch is not looked at by `forward_intermediates` of a ResNet, and knows no `sparse`.
        """
        stages = self._stages()
        for stage in stages:
            stage.forward = partial(recomputed, self, stage.forward)
        try:
            yield
        finally:
            for stage in stages:
                del stage.__dict__["forward"]

    def units(self) -> list[nn.Module]:
        """See `Encoder.units`: the stages, which are also what `recompute` computes again as one."""
        return self._stages()

    def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        """timm's own coarse grouping of the model: [stem, stage 0, ..., last norm]."""
        return groups_of_timm(self, coarse=True)

    def timm_config(self) -> dict[str, Any]:
        """See `Encoder.timm_config`."""
        return describe_for_timm(self, self._arguments())
