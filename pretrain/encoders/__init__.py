"""Encoders by name. A new one is one file here and one line in `ENCODERS`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...data.config import polymorphic
from ...data.errors import ConfigError, nearest
from .base import Encoder, Features, Hide
from .convnet import ConvNet
from .convnext3d import ConvNeXt3D
from .primus import Primus
from .resenc import ResEnc
from .resnet3d import ResNet3D
from .segresnet import SegResNet
from .swin import Swin
from .swin3d import Swin3D
from .vit import ViT
from .vit3d import ViT3D
from .vit3d_learnt import ViT3DLearnt
from .vit_any import ViTAny

__all__ = ["ENCODERS", "Encoder", "Features", "Hide", "build_encoder"]

ENCODERS: dict[str, type[Encoder]] = {
    "vit": ViT,
    "swin": Swin,
    "convnet": ConvNet,
    "vit3d": ViT3D,
    "vit3d_learnt": ViT3DLearnt,
    "vit_any": ViTAny,
    "convnext3d": ConvNeXt3D,
    "resenc": ResEnc,
    "resnet3d": ResNet3D,
    "segresnet": SegResNet,
    "swin3d": Swin3D,
    "primus": Primus,
}


def build_encoder(config: Any, *, download: bool = True) -> Encoder:
    """Build an encoder from its dataclass (`ViT.Config(...)`) or from a mapping with `name`.

    Args:
        download: False: the weights come from elsewhere, `pretrained` asks no network for them.

    Raises:
        ConfigError: unknown name or field, with the near ones; sizes that contradict each other.
    """
    if isinstance(config, Mapping):
        config = polymorphic({str(key): config[key] for key in config}, ENCODERS, "encoder")[1]
    name = str(getattr(config, "name", ""))
    if name not in ENCODERS:
        raise ConfigError(f"unknown encoder {name!r}{nearest(name, set(ENCODERS))}")
    if not download and getattr(config, "pretrained", False):
        config = replace(config, pretrained=False)
    return ENCODERS[name](config)
