"""The optimiser: AdamW over groups chosen by what a parameter is, and the learning-rate arithmetic.

Weight decay is for matrices and convolution kernels. Norms, biases and layer scales (anything of one axis)
and learnt tokens and positions get none: decay would pull them to zero without regularising anything. They
are found by shape and by type, and tokens and positions by the last part of their name, never by a
substring that could also sit in somebody's module name. With `layer_decay` below 1 a layer learns the
slower the further it is from the output (BEiT, arXiv 2106.08254); the objective's own parameters count as
output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..data.errors import ConfigError, nearest
from .encoders.base import Encoder

REFERENCE_BATCH = 256
OPTIMISERS = ("adamw", "sgd")

# How the rate grows with the batch: linear (arXiv 1706.02677), by its root (which fits Adam's noise scale,
# arXiv 2205.10287, and DINOv2's recipes), or not at all.
SCALINGS: dict[str, float] = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}

# Last part of the names of learnt tokens and positions in timm's and our own networks.
TOKENS = frozenset(
    {
        "cls_token", "reg_token", "dist_token", "mask_token", "pixel_token", "pos_embed", "latent",
        "relative_position_bias_table",
    }
)  # fmt: skip


def scaled_lr(base_lr: float, global_batch: float, scaling: str = "linear") -> tuple[float, str]:
    """Peak learning rate for a batch, and the arithmetic as a line to print.

    Args:
        base_lr: rate at a global batch of 256.
        global_batch: samples an optimiser step, over all ranks and accumulation; the mean over shape classes.
        scaling: a key of `SCALINGS`.

    Raises:
        ConfigError: an unknown scaling.
    """
    if scaling not in SCALINGS:
        raise ConfigError(f"optim.scaling: unknown rule {scaling!r}{nearest(scaling, set(SCALINGS))}")
    power = SCALINGS[scaling]
    lr = base_lr * (global_batch / REFERENCE_BATCH) ** power
    if not power:
        return lr, f"lr = base_lr = {lr:g} (optim.scaling=none)"
    if power == 1.0:
        rule, numbers = f"batch / {REFERENCE_BATCH}", f"{global_batch:g} / {REFERENCE_BATCH}"
    else:
        rule, numbers = f"√(batch / {REFERENCE_BATCH})", f"√({global_batch:g} / {REFERENCE_BATCH})"
    return lr, f"lr = base_lr × {rule} = {base_lr:g} × {numbers} = {lr:g}"


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter of this (dotted) name."""
    return parameter.ndim > 1 and name.rpartition(".")[2] not in TOKENS


def param_groups(
    encoder: Encoder,
    others: Iterable[tuple[str, nn.Parameter]] = (),
    *,
    weight_decay: float,
    layer_decay: float = 1.0,
    stem_scale: float = 1.0,
) -> list[dict[str, Any]]:
    """Optimiser groups, each with `params`, `weight_decay`, `lr_scale` and `name`.

    A group whose weight decay may be scheduled has a name that ends in "decay".

    Every parameter that requires a gradient is in exactly one group; the order is that of depth, the same in
    each run, as optimiser states are saved by order.

    Args:
        encoder: its `layer_groups` give the depth.
        others: named parameters that count as output: objective, head.
        stem_scale: factor on the rate of the encoder's first layer (DINOv2 slows the patch embedding down).

    Raises:
        ConfigError: a layer decay or stem scale outside (0, 1].
        ValueError: the encoder's layer groups leave out, or repeat, a parameter.
    """
    if not 0 < layer_decay <= 1:
        raise ConfigError(f"optim.layer_decay is {layer_decay}: it lies in (0, 1], 1 meaning none")
    if not 0 < stem_scale <= 1:
        raise ConfigError(f"optim.stem_scale is {stem_scale}: it lies in (0, 1], 1 meaning none")
    layers = encoder.layer_groups()
    _check_complete(encoder, layers)
    groups: list[dict[str, Any]] = []
    for depth, layer in enumerate(layers):
        scale = layer_decay ** (len(layers) - depth) * (stem_scale if depth == 0 else 1.0)
        groups += _split(f"encoder.{depth}", layer, weight_decay, scale)
    groups += _split("others", list(others), weight_decay, 1.0)
    return groups if layer_decay < 1 else _merge(groups)


def optimiser(
    name: str,
    groups: list[dict[str, Any]],
    *,
    lr: float,
    betas: Sequence[float],
    momentum: float,
    fused: bool | str = "auto",
) -> torch.optim.Optimizer:
    """`adamw` below, or SGD with Nesterov's momentum, which convolutional U-Nets are trained with (nnU-Net).

    Args:
        fused: one kernel an update instead of several hundred; "auto": where torch has one.

    Raises:
        ConfigError: a name not in `OPTIMISERS`; `fused` where torch has no such kernel.
    """
    if name not in OPTIMISERS:
        raise ConfigError(f"optim.name: unknown optimiser {name!r}{nearest(name, OPTIMISERS)}")
    if name == "adamw":
        return adamw(groups, lr=lr, betas=betas, fused=fused)
    for group in groups:
        group["lr"] = lr * group["lr_scale"]
    return torch.optim.SGD(
        groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=_fused(fused, groups)
    )


def adamw(
    groups: list[dict[str, Any]],
    *,
    lr: float,
    betas: Sequence[float],
    eps: float = 1e-8,
    fused: bool | str = "auto",
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) with `lr`·`lr_scale` as the initial rate of each group.

    A schedule multiplies the groups' initial rates, as `LambdaLR` does; `fused` as in `optimiser`. Lightning
    refuses its own gradient clipping with a fused optimiser under mixed precision: clip in
    `configure_gradient_clipping`.
    """
    for group in groups:
        group["lr"] = lr * group["lr_scale"]
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=_fused(fused, groups))


def _fused(wanted: bool | str, groups: list[dict[str, Any]]) -> bool | None:
    """What `fused` of a torch optimiser has to be; None leaves the choice to torch."""
    if str(wanted).lower() == "false":
        return False
    parameters = [p for group in groups for p in group["params"]]
    if all(p.device.type in ("cuda", "cpu") and torch.is_floating_point(p) for p in parameters):
        return True
    if str(wanted).lower() == "true":
        kinds = ", ".join(sorted({p.device.type for p in parameters}))
        raise ConfigError(f"optim.fused=true: torch has no fused optimiser on {kinds}; use optim.fused=auto")
    return None


def _split(
    name: str, named: list[tuple[str, nn.Parameter]], weight_decay: float, scale: float
) -> Iterator[dict[str, Any]]:
    """The decayed and the plain parameters of one layer, empty groups left out."""
    trained = [(key, p) for key, p in named if p.requires_grad]
    for kind, wanted, decay in (("decay", True, weight_decay), ("plain", False, 0.0)):
        params = [p for key, p in trained if decays(key, p) is wanted]
        if params:
            yield {"params": params, "weight_decay": decay, "lr_scale": scale, "name": f"{name}.{kind}"}


def _merge(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One group for each kind and rate: without layer decay, few groups are faster."""
    merged: dict[tuple[float, str], dict[str, Any]] = {}
    for group in groups:
        kind = group["name"].rpartition(".")[2]
        key = (group["lr_scale"], kind)
        name = kind if group["lr_scale"] == 1.0 else group["name"]
        found = merged.setdefault(key, {**group, "params": [], "name": name})
        found["params"] = [*found["params"], *group["params"]]
    return [merged[key] for key in sorted(merged, key=lambda key: (-key[0], key[1]))]


def _check_complete(encoder: Encoder, layers: list[list[tuple[str, nn.Parameter]]]) -> None:
    listed = [name for layer in layers for name, _ in layer]
    wrong = {name for name, _ in encoder.named_parameters()}.symmetric_difference(listed)
    if wrong or len(listed) != len(set(listed)):
        repeated = {name for name in listed if listed.count(name) > 1}
        raise ValueError(f"layer_groups of {type(encoder).__name__} misplaces {sorted(wrong | repeated)[:5]}")
