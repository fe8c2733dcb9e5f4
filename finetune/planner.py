"""Fingerprint of the training cases -> plan: spacing, patch, batch, within the encoder's constraints.

The rules are nnU-Net's in short (Isensee et al., Nature Methods 2021): median spacing, a patch that covers
the median case where memory allows, batch from what is left. Differences, and why: the patch is a multiple
of the encoder's patch; the spacing stays within twice of what the encoder was trained on, where its record
says that; on a CPU it is capped at 64^3 voxels, because time and not memory is what runs out
there; the through-plane spacing of very thick slices is not changed (nnU-Net takes its tenth percentile),
because interpolated slices carry no information. Only training cases are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..data.errors import ConfigError
from ..pretrain.contract import FAR
from ..pretrain.encoders.base import Encoder
from .config import FinetuneConfig
from .record import WHOLE, TaskRecord

# Voxels of a patch at most: beyond 64^3 a step on two CPU cores takes seconds; 128^3 is nnU-Net's usual.
_MOST_VOXELS = {("cpu", 3): 64**3, ("cuda", 3): 128**3, ("cpu", 2): 256**2, ("cuda", 2): 512**2}
_MOST_BATCH = {3: 4, 2: 16}
_SHARE_OF_MEMORY = 0.5


@dataclass(frozen=True)
class Fingerprint:
    """What the plan needs to know of the training cases, in array order."""

    ndim: int
    channels: int
    shape: list[int]  # median, at the target spacing
    native_shape: list[int]  # median, as stored
    spacing: list[float] | None  # median, mm; None where any case has none
    cases: int


@dataclass(frozen=True)
class Plan:
    """How a case becomes what the network sees. Written to plan.yaml."""

    ndim: int
    channels: int  # that the network takes
    patch: list[int]
    batch: int
    spacing: list[float] | None  # mm to which cases are resampled; None: as stored
    resize: list[int] | None  # every case is resized to this, whatever its spacing
    foreground: list[float] | None  # mean and deviation of the structures, in normalised intensity
    activation_gib: float  # estimate for one step
    budget_gib: float
    fingerprint: Fingerprint
    anchors: dict[str, Any] | None = None  # detection: see detection/anchors.py
    notes: list[str] = field(default_factory=list)  # what was decided otherwise than by the rules, and why

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict."""
        return asdict(self)

    def describe(self, multiple: Sequence[int]) -> list[str]:
        """The plan in a few lines; `multiple`: pixels of the encoder's token."""
        seen = self.fingerprint
        images = f"{seen.cases} training cases, median {_by(seen.native_shape)}"
        images += f" at {_by(seen.spacing)} mm" if seen.spacing else ""
        grid = "as stored"
        if self.resize:
            grid = f"every case resized to {_by(self.resize)}"
        elif self.spacing:
            grid = f"resampled to {_by(self.spacing)} mm, median {_by(seen.shape)}"
        share = math.prod(min(1.0, p / s) for p, s in zip(self.patch, self.resize or seen.shape, strict=True))
        return [
            f"{images}; {self.channels} channel{'s' * (self.channels > 1)}",
            grid,
            f"patch {_by(self.patch)} (multiples of {_by(multiple)}), {100 * share:.0f} % of the median case",
            f"batch {self.batch}, activations {self.activation_gib:.2f} of {self.budget_gib:.1f} GiB",
            *self.notes,
        ]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """Read what `to_dict` wrote."""
        return cls(**{**values, "fingerprint": Fingerprint(**values["fingerprint"])})

    def target_shape(self, shape: Sequence[int], spacing: Sequence[float] | None) -> tuple[int, ...]:
        """Spatial shape of a case on the grid that the network sees; differences below 5 % are left alone."""
        if self.resize:
            return tuple(self.resize)
        if self.spacing is None or spacing is None:
            return tuple(shape)
        ratios = [have / want for have, want in zip(spacing, self.spacing, strict=True)]
        if all(abs(ratio - 1) < 0.05 for ratio in ratios):
            return tuple(shape)
        return tuple(max(1, round(side * ratio)) for side, ratio in zip(shape, ratios, strict=True))


def fingerprint(metas: Sequence[Mapping[str, Any]], spacing: Sequence[float] | None) -> Fingerprint:
    """Summarise the `key.json` of the training cases.

    Raises:
        ConfigError: 2D and 3D cases in one task, or an unfit mixture of channels.
    """
    dimensions = sorted({int(meta["ndim"]) for meta in metas})
    if len(dimensions) != 1:
        raise ConfigError(f"the task mixes {dimensions} dimensional images: give each its own task record")
    if spacing is not None and len(spacing) != dimensions[0]:
        raise ConfigError(f"task: spacing {list(spacing)}: give {dimensions[0]} numbers")
    channels = sorted({int(meta["shape"][0]) for meta in metas} - {1}) or [1]
    if len(channels) != 1:
        raise ConfigError(f"the task's images have {channels} channels: keep one number, beside grey images")
    shapes = np.array([meta["shape"][1:] for meta in metas], dtype=np.float64)
    spacings = None
    if all(meta.get("spacing") for meta in metas):
        spacings = np.array([meta["spacing"] for meta in metas], dtype=np.float64)
    median = None if spacings is None else [float(x) for x in np.median(spacings, axis=0)]
    target = list(spacing) if spacing else median
    scaled = shapes if spacings is None or target is None else shapes * spacings / np.array(target)
    return Fingerprint(
        ndim=dimensions[0],
        channels=channels[0],
        shape=[round(float(x)) for x in np.median(scaled, axis=0)],
        native_shape=[round(float(x)) for x in np.median(shapes, axis=0)],
        spacing=median,
        cases=len(metas),
    )


def make_plan(
    record: TaskRecord,
    config: FinetuneConfig,
    metas: Sequence[Mapping[str, Any]],
    encoder: Encoder,
    *,
    device: str = "cpu",
    crop: Sequence[int] | None = None,
    foreground: Sequence[float] | None = None,
    contract: Mapping[str, Any] | None = None,
) -> Plan:
    """Plan a task for an encoder.

    Args:
        metas: `key.json` of the training cases.
        device: "cpu" or an accelerator.
        crop: the encoder's own training crop, preferred for 2D classification.
        foreground: mean and deviation of the structures (`tasks.segmentation.foreground_statistics`).
        contract: the `input` section of encoder.json; the spacing is kept near that of training.

    Raises:
        ConfigError: encoder and images differ in dimensions; a patch that does not fit the encoder or memory.
    """
    spacing, notes = record.spacing, []
    found = fingerprint(metas, spacing)
    if spacing is None and found.spacing and record.kind not in WHOLE:
        near = near_training(found.spacing, contract or {}, {str(meta.get("modality")) for meta in metas})
        if near != found.spacing:
            notes = [f"spacing {_by(near)} mm, not the median {_by(found.spacing)}: the encoder was "
                     "trained near it; task.spacing overrides"]  # fmt: skip
            spacing, found = near, fingerprint(metas, near)
    if found.ndim not in encoder.axes:
        takes = " and ".join(f"{n}D" for n in encoder.axes)
        raise ConfigError(
            f"task {record.name} has {found.ndim}D images, this encoder takes {takes}: "
            f"give a {found.ndim}D encoder" + (", or dims=slices or dims=inflate" if found.ndim == 3 else "")
        )
    resize = _resize(record, config, found, encoder, crop)
    given = resize or config.patch or record.patch
    patch, batch, needed, budget = _sizes(record, config, found, encoder, given, device)
    channels = encoder.in_channels if found.channels in (1, encoder.in_channels) else found.channels
    return Plan(
        ndim=found.ndim,
        channels=channels,
        patch=patch,
        batch=batch,
        spacing=None if resize else (list(spacing) if spacing else found.spacing),
        resize=resize,
        foreground=list(foreground) if foreground else None,
        activation_gib=round(needed / 2**30, 3),
        budget_gib=round(budget / 2**30, 3),
        fingerprint=found,
        notes=notes,
    )


def near_training(
    spacing: Sequence[float], contract: Mapping[str, Any], modalities: Iterable[str]
) -> list[float]:
    """`spacing` (mm, array order), moved into what an encoder was trained on, with a factor of 2 to spare.

    The bounds are the 5th and 95th percentile of the modalities at hand, halved and doubled (contract.FAR);
    what the contract does not know is left alone.
    """
    known: Mapping[str, Any] = contract.get("modalities") or {}
    seen = [known[name]["spacing_mm"] for name in modalities if "spacing_mm" in known.get(name, {})]
    seen = [one for one in seen if len(one["p5"]) == len(spacing)]
    if not seen:
        return list(spacing)
    low = np.min([one["p5"] for one in seen], axis=0) / FAR
    high = np.max([one["p95"] for one in seen], axis=0) * FAR
    return [float(min(max(s, a), b)) for s, a, b in zip(spacing, low, high, strict=True)]


def _by(values: Sequence[float]) -> str:
    return " × ".join(f"{value:.3g}" for value in values)


def _sizes(
    record: TaskRecord,
    config: FinetuneConfig,
    found: Fingerprint,
    encoder: Encoder,
    given: Sequence[int] | None,
    device: str,
) -> tuple[list[int], int, float, float]:
    """(patch, batch, bytes of a step, budget in bytes); a patch that is not given shrinks into the budget."""
    cap = _MOST_VOXELS["cpu" if device == "cpu" else "cuda", found.ndim]
    multiple = encoder.patch_of(found.ndim)
    patch = _checked(given, multiple, record.name) if given else shrink(found.shape, multiple, cap)
    budget = memory_gib(config, device) * 2**30
    segmentation = record.kind not in WHOLE
    while not given and max(patch) > min(multiple) and _bytes(patch, config, encoder, segmentation) > budget:
        cap //= 2
        patch = shrink(found.shape, multiple, cap)
    one = _bytes(patch, config, encoder, segmentation)
    most = _MOST_BATCH[found.ndim] if segmentation else 32
    batch = config.batch_size or int(max(1, min(most, budget // one)))
    if one * batch > budget:
        raise ConfigError(
            f"a step of {batch} × {'×'.join(map(str, patch))} needs about {one * batch / 2**30:.1f} GiB, the "
            f"budget is {budget / 2**30:.1f}: lower batch_size, patch or head.width, or raise memory_gib"
        )
    return patch, batch, one * batch, budget


def shrink(shape: Sequence[int], multiple: Sequence[int], most: int) -> list[int]:
    """Smallest multiples that cover `shape`; the longest side shrinks until `most` voxels are left."""
    sides = [max(1, math.ceil(side / step)) * step for side, step in zip(shape, multiple, strict=True)]
    while math.prod(sides) > most:
        open_axes = [axis for axis, side in enumerate(sides) if side > multiple[axis]]
        if not open_axes:
            break
        longest = max(open_axes, key=lambda axis: sides[axis])
        sides[longest] -= multiple[longest]
    return sides


def _resize(
    record: TaskRecord,
    config: FinetuneConfig,
    found: Fingerprint,
    encoder: Encoder,
    crop: Sequence[int] | None,
) -> list[int] | None:
    """The fixed size of every case, where the task asks for one; classification always has one."""
    size, multiple = config.image_size, encoder.patch_of(found.ndim)
    if record.kind in WHOLE:
        if found.ndim == 3:
            given = config.patch or record.patch or shrink(found.shape, multiple, 64**3)
            return _checked(given, multiple, record.name)
        if size is None and crop is not None:
            return _checked(list(crop), multiple, record.name)
        size = size or record.image_size or 224
    elif size is None:
        size = record.image_size
    if size is None or found.ndim == 3 or (record.kind not in WHOLE and config.patch):
        return None
    return shrink([size] * found.ndim, multiple, 10**9)


def _checked(patch: Sequence[int], multiple: Sequence[int], name: str) -> list[int]:
    if len(patch) != len(multiple):
        raise ConfigError(f"task {name}: patch {list(patch)}: give {len(multiple)} numbers")
    if any(side < 1 or side % step for side, step in zip(patch, multiple, strict=True)):
        near = [max(1, round(side / step)) * step for side, step in zip(patch, multiple, strict=True)]
        raise ConfigError(
            f"task {name}: patch {list(patch)} is no multiple of the encoder's patch {list(multiple)}: "
            f"give patch={near}"
        )
    return [int(side) for side in patch]


def _bytes(patch: Sequence[int], config: FinetuneConfig, encoder: Encoder, segmentation: bool) -> float:
    """Activations of one sample in float32: about 24 maps a token and block, 20 at full resolution.

    Measured on the shipped networks to within a factor of 1.5 (attention maps are not stored).
    """
    tokens = math.prod(side / step for side, step in zip(patch, encoder.patch_of(len(patch)), strict=True))
    depth = max(1, len(encoder.layer_groups()) - 2)
    body = tokens * encoder.embed_dim * depth * 24 * 4
    return body + (math.prod(patch) * config.head.width * 20 * 4 if segmentation else 0)


def memory_gib(config: FinetuneConfig, device: str) -> float:
    """The budget of activations in GiB: what the run says, or half of what is free now."""
    return config.memory_gib or free_gib(device) * _SHARE_OF_MEMORY


def free_gib(device: str) -> float:
    """Memory that is free on a device (a torch device type), in GiB."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info()[0] / 2**30
    import psutil

    return psutil.virtual_memory().available / 2**30
