"""Online probe: how well do neighbours in feature space agree on labels, on data that has labels.

k nearest neighbours by cosine similarity (k = 10) from a training to a validation part of each labelled
source; the score is balanced accuracy, so that 1 / classes is chance. No training and no tuning, hence cheap
and comparable along a run: for 1,000 images it costs one encoder pass over them. A declared test split is
never read here. MAE may have a poor kNN and still fine-tune best: one number among several.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..data.loader.batches import collate
from ..data.normalise import grey, intensity
from ..data.sample import MODALITIES, Modality
from ..data.stream.config import StreamConfig
from ..data.stream.crops import pad_to
from .config import ProbeConfig
from .diagnostics import rankme
from .encoders import Encoder
from .views import to_float

if TYPE_CHECKING:
    from ..data.shards.reader import SampleRef, Shards

log = logging.getLogger(__name__)

BATCH = 32
VALIDATION_TENTHS = 3  # of the subjects, where a source declares no validation split


@dataclass(frozen=True)
class ProbeSet:
    """The samples of one labelled source that the probe looks at."""

    name: str  # dataset
    refs: list[SampleRef]
    labels: np.ndarray  # int64 [n]
    validation: np.ndarray  # bool [n]
    classes: list[str]


class KnnProbe:
    """Callable (encoder, device) -> {"probe/knn_<dataset>": balanced accuracy, "probe/rankme": ...}."""

    def __init__(self, config: ProbeConfig, data: StreamConfig) -> None:
        """Choose the samples; sources without two classes in both parts are left out, with a log line.

        Raises:
            ShardError: no shards at `config.shards`.
        """
        from ..data.remote.shards import open_shards

        self.config = config
        self.data = data
        self.shards = open_shards(replace(data, shards=config.shards or data.shards))
        self.sets = probe_sets(self.shards, config, data.ndim)
        if not self.sets:
            log.warning("probe: no source of %s has labels %r in %dD; nothing is probed",
                        self.shards.root, config.label, data.ndim)  # fmt: skip

    def __call__(self, encoder: Encoder, device: torch.device) -> dict[str, float]:
        """Encode the samples and score each source."""
        scores: dict[str, float] = {}
        everything: list[Tensor] = []
        training = encoder.training
        encoder.eval()
        try:
            for chosen in self.sets:
                features = self.encode(chosen.refs, encoder, device)
                everything.append(features)
                train, validation = ~chosen.validation, chosen.validation
                labels = torch.from_numpy(chosen.labels[train])
                # With more neighbours than a class has samples, that class could never win.
                k = min(self.config.k, int(labels.bincount()[labels.unique()].min()))
                predicted = knn_predict(
                    features[train], labels, features[validation], k=k, classes=len(chosen.classes)
                )
                truth = torch.from_numpy(chosen.labels[validation])
                scores[f"probe/knn_{chosen.name}"] = balanced_accuracy(truth, predicted)
        finally:
            encoder.train(training)
        if everything:
            scores["probe/rankme"] = rankme(torch.cat(everything))
        return scores

    @torch.no_grad()
    def encode(self, refs: Sequence[SampleRef], encoder: Encoder, device: torch.device) -> Tensor:
        """Features float32 [n, 2E] on the CPU: pooled and mean patch token, each of length one."""
        parts: list[Tensor] = []
        for start in range(0, len(refs), BATCH):
            samples = [load(self.shards, ref, self.data) for ref in refs[start : start + BATCH]]
            batch = on_device(collate(samples), device)
            found = encoder(to_float(batch, encoder.in_channels))
            both = [found.pooled, found.tokens.mean(dim=1)]
            parts.append(
                torch.cat([torch.nn.functional.normalize(x.float(), dim=1) for x in both], dim=1).cpu()
            )
        return torch.cat(parts)


def knn_predict(train: Tensor, labels: Tensor, query: Tensor, *, k: int, classes: int) -> Tensor:
    """Majority vote of the k nearest by cosine; a tie goes to the class with the larger summed similarity.

    Args:
        train: float [n, E]; labels: int64 [n]; query: float [m, E].

    Returns:
        int64 [m].
    """
    similarity = torch.nn.functional.normalize(query, dim=1) @ torch.nn.functional.normalize(train, dim=1).T
    value, index = similarity.topk(min(k, len(train)), dim=1)
    votes = torch.zeros(len(query), classes, dtype=torch.float64)
    # One vote a neighbour; the small addition is below half a vote in sum and only breaks ties.
    votes.scatter_add_(1, labels[index], 1.0 + value.double() * 0.4 / k)
    return votes.argmax(dim=1)


def balanced_accuracy(truth: Tensor, predicted: Tensor) -> float:
    """Mean recall over the classes that occur in `truth` (int64 [n] both)."""
    recalls = [float((predicted[truth == label] == label).double().mean()) for label in truth.unique()]
    return float(np.mean(recalls)) if recalls else float("nan")


def probe_sets(shards: Shards, config: ProbeConfig, ndim: int) -> list[ProbeSet]:
    """The labelled sources of this dimensionality, with at most `max_samples` samples each."""
    chosen: list[ProbeSet] = []
    for source in shards.manifest.sources:
        if source.ndim != ndim or len(source.labels.get(config.label, {})) < 2:
            continue
        refs = list(shards.refs(source.id))
        stride = max(1, len(refs) // (2 * config.max_samples))  # test samples and unlabelled ones drop out
        rows = [(ref, shards.meta(ref)) for ref in refs[::stride]]
        rows = [row for row in rows if row[1].get("split") != "test"]
        rows = [row for row in rows if (row[1].get("labels") or {}).get(config.label) is not None]
        rows = sorted(rows, key=lambda row: _digest(row[1]["key"]))[: config.max_samples]
        found = _split(source.dataset, rows, config.label)
        if found is not None:
            chosen.append(found)
    return chosen


def _split(name: str, rows: list[tuple[Any, dict[str, Any]]], label: str) -> ProbeSet | None:
    declared = {meta.get("split") for _, meta in rows}
    if {"train", "val"} <= declared:
        validation = [meta.get("split") == "val" for _, meta in rows]
    else:
        validation = [
            _digest(meta.get("subject") or meta["key"]) % 10 < VALIDATION_TENTHS for _, meta in rows
        ]
    words = [str(meta["labels"][label]) for _, meta in rows]
    classes = sorted(set(words))
    labels = np.array([classes.index(word) for word in words], dtype=np.int64)
    mask = np.array(validation, dtype=bool)
    if len(set(labels[mask])) < 2 or len(set(labels[~mask])) < 2:
        log.info("probe: %s is left out: too few labelled samples for two classes in both parts", name)
        return None
    return ProbeSet(name, [ref for ref, _ in rows], labels, mask, classes)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(str(text).encode(), digest_size=8).digest(), "little")


def load(shards: Shards, ref: SampleRef, data: StreamConfig) -> dict[str, Any]:
    """One whole image, as `Stream` gives crops: a picture resized to `data.crop`, a volume's middle."""
    meta = shards.meta(ref)
    size = [int(n) for n in meta["shape"][1:]]
    numbers = intensity(meta)
    if data.ndim == 2:
        image = shards.read_resized(ref, (0, 0, size[0], size[1]), data.crop)
    else:
        origin = [max(0, (n - c) // 2) for n, c in zip(size, data.crop, strict=True)]
        extent = [min(n, c) for n, c in zip(size, data.crop, strict=True)]
        image = pad_to(shards.read(ref, origin, extent), data.crop, numbers.low)
    if len(image) > 1 and (grey(meta) or len(image) != data.in_channels):
        image, numbers = image[:1], numbers.take([0])
    return {
        "image": image, "low": numbers.low, "high": numbers.high, "mean": numbers.mean, "std": numbers.std,
        "modality": MODALITIES.index(Modality(meta["modality"])), "key": meta["key"], "position": 0,
        "spacing": np.asarray(meta["spacing"] or [1.0] * data.ndim, np.float32),
    }  # fmt: skip


def on_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A collated batch with its tensors on `device`."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
