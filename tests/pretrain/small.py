"""A small encoder of every family and small settings of every objective, for tests of the cross table."""

from __future__ import annotations

from typing import Any

import torch
from medloom.data.config import polymorphic
from medloom.pretrain.encoders import ENCODERS, Encoder, build_encoder
from medloom.pretrain.objectives import OBJECTIVES, Batch, Objective
from medloom.pretrain.views import Limits

# Sections of small encoders by the name of the family; several sizes of grid, grey input.
_TINY = {"depth": 2, "embed_dim": 48, "num_heads": 3}
SMALL_ENCODERS: dict[str, dict[str, Any]] = {
    "vit": {"model": "vit_tiny_patch16_224", "patch_size": 8, "img_size": 32, **_TINY},
    "convnet": {"model": "convnext_atto"},
    "vit3d": {"size": "tiny", "patch_size": [8, 8, 8], **_TINY},
    "vit3d_learnt": {"patch_size": [8, 8, 8], "img_size": [32, 32, 32], **_TINY},
    "swin": {
        "model": "swin_tiny_patch4_window7_224",
        "img_size": 64,
        "kwargs": {"depths": [1, 1, 1, 1], "embed_dim": 12, "num_heads": [1, 2, 2, 2], "window_size": 4},
    },
    "vit_any": {"size": "tiny", "patch_size": [8, 8, 8], "patch_size_2d": [8, 8], **_TINY},
    "convnext3d": {
        "model": "convnext_atto",
        "depth_strides": [1, 2, 2, 2],
        "kwargs": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32], "patch_size": 1},
    },
    "resenc": {
        "features": [8, 8, 16, 16],
        "blocks": [1, 1, 1, 1],
        "strides": [1, 2, 2, 2],
        "kernels": [3, 3, 3, 3],
    },
    "resnet3d": {"depth": 10, "width": 0.125, "stem_stride": 1},
    "segresnet": {"filters": 8, "blocks": [1, 1, 1, 1]},
    "swin3d": {"feature_size": 12, "depths": [1, 1], "num_heads": [1, 2], "window": [4, 4, 4]},
    "primus": {"img_size": [32, 32, 32], "depth": 2, "embed_dim": 48, "num_heads": 2},
}

# Crops as large as what the loader gives, so that they suit any patch.
_CROPS = [{"name": "global", "count": 2}, {"name": "local", "count": 2, "scale": [0.1, 0.3]}]
_HEAD = {"prototypes": 64, "head_hidden": 32, "head_bottleneck": 16, "crops": _CROPS}

# What makes a step of an objective cheap; an objective that is not named runs with its defaults.
SMALL_OBJECTIVES: dict[str, dict[str, Any]] = {
    "dino": _HEAD,
    "dinov2": {**_HEAD, "gram": {"weight": 2.0, "start": 0.3}},
    "genesis": {"decoder_width": 8, "decoder_most": 16},
    "ijepa": {"predictor_dim": 48, "predictor_depth": 1, "predictor_heads": 3},
    "lejepa": {"hidden_dim": 64, "out_dim": 16, "directions": 64, "crops": _CROPS},
    "mae": {"decoder_dim": 48, "decoder_depth": 1, "decoder_heads": 3},
    "mdae": {"decoder_dim": 48, "decoder_depth": 1, "decoder_heads": 3},
    "supervised": {"classes": {"a": ["x", "y"], "b": ["x", "y", "z"]}},
    "mocov3": {"hidden_dim": 64, "out_dim": 16, "crops": _CROPS[:1]},
    "simclr": {"hidden_dim": 64, "out_dim": 16, "crops": _CROPS[:1]},
    "spark": {"decoder_width": 8, "decoder_most": 16},
    "swinunetr": {"decoder_width": 8, "contrast_dim": 16},
    "voco": {"hidden_dim": 64, "out_dim": 16, "crops": 2, "grid": [1, 2, 2]},
}


def small_encoder(family: str, **changes: Any) -> Encoder:
    """A small encoder of this family with fixed weights and one channel."""
    torch.manual_seed(0)
    return build_encoder({"name": family, "in_channels": 1, **SMALL_ENCODERS.get(family, {}), **changes})


def small_objective(name: str, encoder: Encoder, **changes: Any) -> Objective:
    """The objective around the encoder, with fixed weights."""
    section = {"name": name, **SMALL_OBJECTIVES.get(name, {}), **changes}
    if name == "voco":
        patch = encoder.patch_of(3) if 3 in encoder.axes else (8, 8, 8)
        section["size"] = [max(8, patch[0]), *(max(16, 2 * side) for side in patch[1:])]
    kind, config = polymorphic(section, OBJECTIVES, "objective")
    torch.manual_seed(1)
    return kind(config, encoder)


def loaded_size(encoder: Encoder, ndim: int) -> tuple[int, ...]:
    """What the loader gives: room for four tokens along each axis, and at least 32 pixels."""
    return tuple(max(32, 4 * patch) for patch in encoder.patch_of(ndim))


def small_batch(encoder: Encoder, ndim: int, count: int = 4, seed: int = 0) -> Batch:
    """Images with all that a batch of a run carries."""
    size = loaded_size(encoder, ndim)
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(count, encoder.in_channels, *size, generator=generator)
    positions = torch.arange(count) * 7 + 3
    black = torch.full((count, encoder.in_channels), -3.0)
    return Batch(
        image=image, position=positions, host_position=positions, seed=1, step=3, steps=10,
        modality=torch.zeros(count, dtype=torch.int64), spacing=torch.ones(count, ndim),
        limits=Limits(black, -black), label=torch.arange(count) % 2,
        mask=(image[:, 0] > 0.5).long(),
    )  # fmt: skip


def pairs() -> list[tuple[str, str, int]]:
    """(objective, encoder family, axes) of the whole cross table, refused pairs included."""
    found = []
    for family in ENCODERS:
        for ndim in small_encoder(family).axes:
            found += [(name, family, ndim) for name in OBJECTIVES]
    return found
