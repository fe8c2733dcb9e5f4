"""Putting tensors into an encoder: what fits, what is adapted, what is refused, and a report of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..data.errors import CheckpointError
from .encoders.base import Encoder

POSITIONS = ("pos_embed", "pos_embed_window")
NEW_TOKENS = ("cls_token", "reg_token")


@dataclass(slots=True)
class Report:
    """What became of each tensor when an encoder was loaded."""

    source: str
    loaded: list[str] = field(default_factory=list)  # names, adapted ones included
    adapted: list[str] = field(default_factory=list)  # "name: what was done"
    missing: list[str] = field(default_factory=list)  # of the encoder, left at their initial value
    unexpected: list[str] = field(default_factory=list)  # in the file, not used
    record: dict[str, Any] = field(default_factory=dict)  # encoder.json; empty for other sources
    proved: float | None = None  # difference from the reference features; None: not computed

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing)
        parts = [f"{self.source}: {len(self.loaded)} of {total} tensors loaded"]
        for word, names in (
            ("adapted", self.adapted),
            ("missing", self.missing),
            ("unused", self.unexpected),
        ):
            parts.append(f"{len(names)} {word}" + (f" ({some(names)})" if names else ""))
        if self.proved is not None:
            parts.append(f"reference features agree to {self.proved:.0e}" if self.proved else
                         "reference features agree exactly")  # fmt: skip
        return ", ".join(parts)


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """A stem weight [E, C, *kernel] for another number of input channels.

    To one channel: the sum over C, so that a grey image gives what its C equal copies gave. Else channels
    repeat in turn, scaled by C / channels: exact for equal channels from one, and in scale from several.
    """
    have = weight.shape[1]
    if channels == have:
        return weight
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    turn = torch.arange(channels, device=weight.device) % have
    return weight[:, turn] * (have / channels)


def inflate(weight: Tensor, depth: int) -> Tensor:
    """A kernel [E, C, h, w] for volumes: [E, C, depth, h, w], repeated along depth and divided by it.

    A volume whose slices are all alike then gives what the picture gave (I3D, arXiv 1705.07750, section 2).
    """
    return weight.unsqueeze(2).expand(-1, -1, depth, -1, -1) / depth


def adapt(source: Encoder, target: Encoder, tensors: dict[str, Tensor]) -> list[str]:
    """Bring the tensors of `source`, by artefact name, to the shapes of `target`, in place.

    Returns what was done; a tensor for which nothing is known stays as it is, for `fill` to refuse.
    """
    done = target.adopt(tensors, source) + resample_positions(source, target, tensors)
    places = {name.removeprefix(target.inner): value for name, value in target.state_dict().items()}
    stems = {name.removeprefix(target.inner) for name in target.stems}
    kernels = 0
    for name, tensor in list(tensors.items()):
        want = places.get(name)
        if want is None:
            if name.rpartition(".")[2] in POSITIONS:
                del tensors[name]
                done.append(f"{name}: left out, positions are computed")
            continue
        if name in stems and tensor.shape[-2:] != want.shape[-2:] and tensor.ndim == 4:
            tensor = _resized_patch(tensor, want)
            done.append(
                f"{name}: patch of {list(tensors[name].shape[2:])} -> {list(tensor.shape[2:])} pixels"
            )
        if tensor.ndim == 4 and want.ndim == 5:
            tensor = inflate(tensor, want.shape[2])
            kernels += 1
        tensors[name] = tensor
    return done + ([f"{kernels} kernels repeated along depth"] if kernels else [])


def _resized_patch(weight: Tensor, want: Tensor) -> Tensor:
    """A patch embedding [E, C, h, w] for another size: FlexiViT's pseudo-inverse (arXiv 2212.08013)."""
    from timm.layers import resample_patch_embed

    return resample_patch_embed(weight, list(want.shape[-2:]))


def fill(
    encoder: Encoder,
    tensors: Mapping[str, Tensor],
    source: str,
    strict: bool,
    record: dict[str, Any],
    *,
    new_tokens: bool = False,
) -> Report:
    """Copy tensors, by artefact name, into the encoder, adapting the channels of its stems.

    Args:
        new_tokens: class and register tokens may keep their first values.

    Raises:
        CheckpointError: `strict`, and a tensor without a place or a place without a tensor.
    """
    report = Report(source, record=dict(record))
    state = encoder.state_dict()
    ready: dict[str, Tensor] = {}
    for short, tensor in encoder.from_file(tensors).items():
        name = encoder.inner + short
        if name not in state:
            report.unexpected.append(short)
            continue
        want = state[name].shape
        if name in encoder.stems and tensor.ndim == len(want) and tensor.shape[1] != want[1]:
            report.adapted.append(f"{short}: {tensor.shape[1]} -> {want[1]} channels")
            tensor = adapt_channels(tensor, want[1])
        if tensor.shape != want:
            report.unexpected.append(f"{short} {list(tensor.shape)}, the encoder has {list(want)}")
            continue
        ready[name] = tensor
        report.loaded.append(name)
    report.missing = [name for name in state if name not in ready]
    needed = [n for n in report.missing if not (new_tokens and n.rpartition(".")[2] in NEW_TOKENS)]
    if strict and (needed or report.unexpected):
        raise CheckpointError(
            f"{report}: the weights are of another architecture: name the right one, or load with "
            f"strict=False{_hint(report)}"
        )
    encoder.load_state_dict(ready, strict=False)
    return report


def resample_positions(source: Encoder, target: Encoder, tensors: dict[str, Tensor]) -> list[str]:
    """Bring a learnt 2D position table to the target's grid, in place; returns what was done.

    The old grid is given explicitly: a table of equal length may stand for another grid.
    """
    from timm.layers import resample_abs_pos_embed

    old, new = (getattr(getattr(e, "model", None), "patch_embed", None) for e in (source, target))
    table = tensors.get("pos_embed")
    if table is None or old is None or new is None or old.grid_size == new.grid_size:
        return []
    prefix = table.shape[1] - old.grid_size[0] * old.grid_size[1]
    tensors["pos_embed"] = resample_abs_pos_embed(
        table, new_size=list(new.grid_size), old_size=list(old.grid_size), num_prefix_tokens=prefix
    )
    return [f"pos_embed: grid {tuple(old.grid_size)} -> {tuple(new.grid_size)}"]


def _hint(report: Report) -> str:
    """What usually brings two transformers together."""
    parts = {name.split(" ")[0].rpartition(".")[2] for name in report.unexpected}
    if "gamma" in parts or "gamma_1" in parts:
        return "; they have layer scales: set encoder.layer_scale=1e-5"
    if "reg_token" in parts:
        return "; they have register tokens: set encoder.registers to their number"
    return ""


def some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
