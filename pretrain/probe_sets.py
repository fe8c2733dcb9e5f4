"""Which labelled samples the probes look at, on which side of the split they are, and how they are read.

A declared test split is never read; `data.stream.validation` says what is validation, and a run that learns
from labels leaves those samples out by the same rule. Pictures are resized to the size that meets the
encoder; of volumes, the middle is read, and for label maps the places with most labelled voxels, so that
patches of tissue decide and not air.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.normalise import grey, intensity
from ..data.sample import MODALITIES, Modality
from ..data.stream.config import StreamConfig
from ..data.stream.crops import pad_to
from ..data.stream.validation import Validation, subject_digest, with_label, with_mask
from .config import ProbeConfig

if TYPE_CHECKING:
    from ..data.shards.manifest import Manifest, SourceEntry
    from ..data.shards.reader import SampleRef, Shards

log = logging.getLogger(__name__)

BOXES = 8  # crops of one volume with a label map, at most
MOST_CLASSES = 20  # of a label map, the most frequent ones


@dataclass(frozen=True)
class ProbeSet:
    """The samples of one labelled source that a probe looks at."""

    name: str  # dataset
    kind: str  # class or mask: what the labels are
    ndim: int
    refs: list[SampleRef]
    labels: np.ndarray  # int64 [n], index into classes; zeros where label maps are the labels
    validation: np.ndarray  # bool [n]
    classes: list[str]  # words, or the values of the label maps, background first
    origins: list[tuple[int, ...] | None] = field(default_factory=list)  # first voxel; None: the middle


def wanted(manifest: Manifest, config: ProbeConfig, ndims: Sequence[int]) -> list[tuple[str, SourceEntry]]:
    """("class" or "mask", source) of what can be probed, as far as the manifest says."""
    found: list[tuple[str, SourceEntry]] = []
    for source in manifest.sources:
        if source.ndim not in ndims:
            continue
        if {"knn", "linear"} & set(config.scores) and len(source.labels.get(config.label, {})) >= 2:
            found.append(("class", source))
        if "dense" in config.scores and source.masks:
            found.append(("mask", source))
    return found


def images(manifest: Manifest, config: ProbeConfig, ndims: Sequence[int]) -> int:
    """Images that one probe encodes, at most."""
    count = 0
    for kind, source in wanted(manifest, config, ndims):
        boxes = BOXES if source.ndim == 3 else 1
        count += (
            min(source.count, config.max_samples)
            if kind == "class"
            else min(source.masks * boxes, config.dense_samples)
        )
    return count


def probe_sets(
    shards: Shards, config: ProbeConfig, data: Sequence[StreamConfig]
) -> dict[str, list[ProbeSet]]:
    """`class` and `mask`: the labelled sources, with at most `max_samples` or `dense_samples` samples each.

    Args:
        data: one configuration for each number of axes, its `crop` what the encoder sees.
    """
    sets: dict[str, list[ProbeSet]] = {"class": [], "mask": []}
    parts = {part.ndim: part for part in data}
    for kind, source in wanted(shards.manifest, config, list(parts)):
        if kind == "class":
            found = _of_classes(shards, source, config)
        else:
            found = _of_masks(shards, source, config, parts[source.ndim])
        if found is not None:
            sets[kind].append(found)
    for chosen in sets.values():  # a dataset of pictures and volumes is two sets
        for i, one in enumerate(chosen):
            if sum(other.name == one.name for other in chosen) > 1 and one.ndim == 3:
                chosen[i] = replace(one, name=f"{one.name}-3d")
    return sets


def _of_classes(shards: Shards, source: SourceEntry, config: ProbeConfig) -> ProbeSet | None:
    every = list(shards.refs(source.id))
    stride = max(1, len(every) // (2 * config.max_samples))  # test samples and unlabelled ones drop out
    rows = [(ref, shards.meta(ref)) for ref in every[::stride]]
    rows = [row for row in rows if row[1].get("split") != "test"]
    rows = [row for row in rows if (row[1].get("labels") or {}).get(config.label) is not None]
    rows = sorted(rows, key=_order)[: config.max_samples]
    side = Validation.of(shards, source, with_label(config.label))
    validation = np.array([side(meta) for _, meta in rows], dtype=bool)
    words = [str(meta["labels"][config.label]) for _, meta in rows]
    classes = sorted(set(words))
    labels = np.array([classes.index(word) for word in words], dtype=np.int64)
    if len(set(labels[validation])) < 2 or len(set(labels[~validation])) < 2:
        log.info("probe: %s is left out: too few labelled samples for two classes in both parts",
                 source.dataset)  # fmt: skip
        return None
    origins: list[tuple[int, ...] | None] = [None] * len(rows)
    refs = [ref for ref, _ in rows]
    return ProbeSet(source.dataset, "class", source.ndim, refs, labels, validation, classes, origins)


def _of_masks(
    shards: Shards, source: SourceEntry, config: ProbeConfig, data: StreamConfig
) -> ProbeSet | None:
    rows = [(ref, meta) for ref in shards.refs(source.id) if (meta := shards.meta(ref)).get("mask")]
    rows = [row for row in rows if row[1].get("split") != "test"]
    rows = sorted(rows, key=_order)[: config.dense_samples]
    if not rows:
        return None
    most = 1 if source.ndim == 2 else min(BOXES, max(1, config.dense_samples // len(rows)))
    validates = Validation.of(shards, source, with_mask)
    refs, origins, validation, seen = [], [], [], ({}, {})
    for ref, meta in rows:
        mask, side = shards.read_mask(ref), validates(meta)
        if mask is None:
            continue
        for origin in [None] if source.ndim == 2 else boxes(mask, data.crop, most):
            refs.append(ref)
            origins.append(origin)
            validation.append(side)
        for value, count in zip(*np.unique(mask, return_counts=True), strict=True):
            seen[int(side)][int(value)] = seen[int(side)].get(int(value), 0) + int(count)
    shared = sorted((set(seen[0]) & set(seen[1])) - {0}, key=lambda v: (-seen[0][v] - seen[1][v], v))
    if not shared:
        log.info("probe: label maps of %s are left out: no label occurs in both parts", source.dataset)
        return None
    classes = ["0", *map(str, shared[: MOST_CLASSES - 1])]
    labels = np.zeros(len(refs), dtype=np.int64)
    return ProbeSet(source.dataset, "mask", source.ndim, refs, labels, np.array(validation), classes, origins)


def _order(row: tuple[SampleRef, dict[str, Any]]) -> int:
    """A fixed shuffle of samples: which of them are looked at, where there are more than enough."""
    return subject_digest({"key": row[1]["key"]})


def boxes(mask: np.ndarray, crop: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """Origins of up to `most` boxes of `crop` voxels on a regular grid, those with most labelled voxels.

    Args:
        mask: label map [D, H, W]; boxes without a label are left out.
    """
    places = []
    for size, extent in zip(mask.shape, crop, strict=True):
        count = max(1, size // extent)
        room = max(0, size - extent)
        places.append([room // 2] if count == 1 else [room * i // (count - 1) for i in range(count)])
    counted = []
    for origin in np.stack(np.meshgrid(*places, indexing="ij"), -1).reshape(-1, mask.ndim).tolist():
        inside = mask[tuple(slice(o, o + n) for o, n in zip(origin, crop, strict=True))]
        counted.append((-int(np.count_nonzero(inside)), tuple(origin)))
    return [origin for count, origin in sorted(counted)[:most] if count]


def load(
    shards: Shards, ref: SampleRef, data: StreamConfig, origin: Sequence[int] | None = None
) -> dict[str, Any]:
    """One image as `Stream` gives crops: a picture resized to `data.crop`, a box of a volume at `origin`.

    The middle of the volume where `origin` is None.
    """
    meta = shards.meta(ref)
    size = [int(n) for n in meta["shape"][1:]]
    numbers = intensity(meta)
    if data.ndim == 2:
        image = shards.read_resized(ref, (0, 0, size[0], size[1]), data.crop)
    else:
        start, extent = _box(size, data.crop, origin)
        image = pad_to(shards.read(ref, start, extent), data.crop, numbers.low)
    if len(image) > 1 and (grey(meta) or len(image) != data.in_channels):
        image, numbers = image[:1], numbers.take([0])
    return {
        "image": image, "low": numbers.low, "high": numbers.high, "mean": numbers.mean, "std": numbers.std,
        "modality": MODALITIES.index(Modality(meta["modality"])), "key": meta["key"], "position": 0,
        "spacing": np.asarray(meta["spacing"] or [1.0] * data.ndim, np.float32),
    }  # fmt: skip


def load_mask(
    shards: Shards, ref: SampleRef, data: StreamConfig, origin: Sequence[int] | None, values: Sequence[str]
) -> np.ndarray:
    """The label map on the voxels of `load`: int64 [*crop], index into `values`, -1 for any other value.

    What `load` pads is -1 as well.
    """
    size = [int(n) for n in shards.meta(ref)["shape"][1:]]
    if data.ndim == 2:
        mask = shards.read_mask_resized(ref, (0, 0, size[0], size[1]), data.crop)
    else:
        mask = shards.read_mask(ref, *_box(size, data.crop, origin))
    out = np.full([1, *data.crop], -1, dtype=np.int64)
    if mask is None:
        return out[0]
    known = np.full(mask.shape, -1, dtype=np.int64)
    for index, value in enumerate(values):
        known[mask == int(value)] = index
    return pad_to(known[None], data.crop, np.array([-1]))[0]


def _box(
    size: Sequence[int], crop: Sequence[int], origin: Sequence[int] | None
) -> tuple[list[int], list[int]]:
    start = (
        [max(0, (n - c) // 2) for n, c in zip(size, crop, strict=True)] if origin is None else list(origin)
    )
    return start, [min(n - o, c) for n, o, c in zip(size, start, crop, strict=True)]
