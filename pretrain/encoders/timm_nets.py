"""Building timm models with errors for users, and describing them so that plain timm reads our artefacts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from ...data.errors import ConfigError, first_line, nearest
from .base import Encoder

# What medloom decides: patches are left out by the objective, never at random inside the network.
RESERVED = (
    "in_chans", "num_classes", "dynamic_img_size", "strict_img_size", "patch_drop_rate", "pretrained"
)  # fmt: skip


def with_user_arguments(arguments: dict[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Add `encoder.kwargs` to `arguments`. Raises ConfigError when they set what medloom sets."""
    clash = sorted(set(RESERVED) & set(kwargs))
    if clash:
        raise ConfigError(f"encoder.kwargs.{clash[0]} is set by medloom: remove it")
    return arguments | dict(kwargs)


def create_timm(name: str, arguments: dict[str, Any], pretrained: bool) -> nn.Module:
    """`timm.create_model` with errors for users.

    Raises:
        ConfigError: unknown model (with near names), arguments that it does not take, weights out of reach.
    """
    import timm

    plain = name.removeprefix("timm/").split(".")[0]
    if not timm.is_model(plain):
        raise ConfigError(f"encoder.model: timm has no {name!r}{nearest(plain, set(timm.list_models()))}")
    try:
        return timm.create_model(name, pretrained=pretrained, **arguments)
    except (TypeError, AssertionError, ValueError) as error:
        raise ConfigError(f"encoder.model: timm cannot build {name} with {arguments}: {error}") from error
    except (RuntimeError, OSError) as error:
        if not pretrained:
            raise
        raise ConfigError(
            f"encoder.pretrained: no weights of {name} ({first_line(error)}): fetch them once while online, "
            "or set pretrained=false"
        ) from error


def describe_for_timm(encoder: Encoder, arguments: dict[str, Any]) -> dict[str, Any]:
    """config.json in timm's own format: architecture, arguments, and the input that medloom trained with."""
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    model = cast(Any, encoder).model
    known = dict(getattr(model, "pretrained_cfg", None) or {})
    size = arguments.get("img_size") or (known.get("input_size") or (3, 224, 224))[1]
    rgb = encoder.in_channels == 3
    channels = encoder.in_channels
    pool = getattr(model, "global_pool", None)
    return {
        "architecture": encoder.config.model.removeprefix("timm/").split(".")[0],
        "num_classes": 0,
        "num_features": encoder.embed_dim,
        **({"global_pool": pool} if isinstance(pool, str) else {}),
        "model_args": {k: v for k, v in arguments.items() if k not in ("num_classes", "drop_path_rate")},
        "pretrained_cfg": {
            "tag": "medloom",
            "custom_load": False,
            "input_size": [channels, size, size],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": list(IMAGENET_DEFAULT_MEAN) if rgb else [0.5] * channels,
            "std": list(IMAGENET_DEFAULT_STD) if rgb else [0.25] * channels,
            "num_classes": 0,
            "first_conv": encoder.stem.removeprefix(encoder.inner).removesuffix(".weight"),
            "classifier": known.get("classifier"),
        },
    }


def groups_of_timm(encoder: Encoder, *, coarse: bool) -> list[list[tuple[str, nn.Parameter]]]:
    """`Encoder.layer_groups` by timm's own matcher: by stage (coarse) or by block, from the stem on."""
    from timm.models import group_parameters

    model = cast(Any, encoder).model
    by_depth = cast(dict[str, int], group_parameters(model, model.group_matcher(coarse=coarse), reverse=True))
    groups: list[list[tuple[str, nn.Parameter]]] = [[] for _ in range(max(by_depth.values()) + 1)]
    for name, parameter in encoder.named_parameters():
        groups[by_depth[name.removeprefix(encoder.inner)]].append((name, parameter))
    return groups
