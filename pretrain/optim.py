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

from ..data.errors import ConfigError
from .encoders.base import Encoder

REFERENCE_BATCH = 256

# Last part of the names of learnt tokens and positions in timm's and our own networks.
TOKENS = frozenset(
    {
        "cls_token", "reg_token", "dist_token", "mask_token", "pixel_token", "pos_embed", "latent",
        "relative_position_bias_table",
    }
)  # fmt: skip


def scaled_lr(base_lr: float, global_batch: float) -> tuple[float, str]:
    """Peak learning rate by the linear rule (arXiv 1706.02677), and the arithmetic as a line to print.

    Args:
        base_lr: rate at a global batch of 256.
        global_batch: samples an optimiser step, over all ranks and accumulation; the mean over shape classes.
    """
    lr = base_lr * global_batch / REFERENCE_BATCH
    rule = f"lr = base_lr × batch / {REFERENCE_BATCH}"
    return lr, f"{rule} = {base_lr:g} × {global_batch:g} / {REFERENCE_BATCH} = {lr:g}"


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter of this (dotted) name."""
    return parameter.ndim > 1 and name.rpartition(".")[2] not in TOKENS


def param_groups(
    encoder: Encoder,
    others: Iterable[tuple[str, nn.Parameter]] = (),
    *,
    weight_decay: float,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Optimiser groups, each with `params`, `weight_decay`, `lr_scale` and `name`.

    Every parameter that requires a gradient is in exactly one group; the order is that of depth, the same in
    each run, as optimiser states are saved by order.

    Args:
        encoder: its `layer_groups` give the depth.
        others: named parameters that count as output: objective, head.

    Raises:
        ConfigError: a layer decay outside (0, 1].
        ValueError: the encoder's layer groups leave out, or repeat, a parameter.
    """
    if not 0 < layer_decay <= 1:
        raise ConfigError(f"optim.layer_decay is {layer_decay}: it lies in (0, 1], 1 meaning none")
    layers = encoder.layer_groups()
    _check_complete(encoder, layers)
    groups: list[dict[str, Any]] = []
    for depth, layer in enumerate(layers):
        scale = layer_decay ** (len(layers) - depth)
        groups += _split(f"encoder.{depth}", layer, weight_decay, scale)
    groups += _split("others", list(others), weight_decay, 1.0)
    return groups if layer_decay < 1 else _merge(groups)


def adamw(
    groups: list[dict[str, Any]], *, lr: float, betas: Sequence[float], eps: float = 1e-8, fused: bool = True
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) with `lr`·`lr_scale` as the initial rate of each group.

    A schedule multiplies the groups' initial rates, as `LambdaLR` does. `fused` is used where all parameters
    are on CUDA (one kernel an update instead of several hundred) and ignored elsewhere. Lightning refuses its
    own gradient clipping with a fused optimiser under mixed precision: clip in `configure_gradient_clipping`.
    """
    parameters = [p for group in groups for p in group["params"]]
    on_cuda = all(p.is_cuda and torch.is_floating_point(p) for p in parameters)
    for group in groups:
        group["lr"] = lr * group["lr_scale"]
    return torch.optim.AdamW(
        groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=True if fused and on_cuda else None
    )


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
    """One group for each kind: without layer decay, depth makes no difference and few groups are faster."""
    merged: list[dict[str, Any]] = []
    for kind in ("decay", "plain"):
        same = [group for group in groups if group["name"].endswith(f".{kind}")]
        if same:
            params = [p for group in same for p in group["params"]]
            merged.append({**same[0], "params": params, "lr_scale": 1.0, "name": kind})
    return merged


def _check_complete(encoder: Encoder, layers: list[list[tuple[str, nn.Parameter]]]) -> None:
    listed = [name for layer in layers for name, _ in layer]
    wrong = {name for name, _ in encoder.named_parameters()}.symmetric_difference(listed)
    if wrong or len(listed) != len(set(listed)):
        repeated = {name for name in listed if listed.count(name) > 1}
        raise ValueError(f"layer_groups of {type(encoder).__name__} misplaces {sorted(wrong | repeated)[:5]}")
