"""Online probes: what frozen features are worth on data that has labels, while an encoder is trained.

Three views of the same encoder, because none alone is to be trusted (a masked autoencoder may have a poor kNN
and the best fine-tune, and dense features may degrade while kNN still rises): `probe/knn_*` and
`probe/linear_*`, balanced accuracy of 10 neighbours and of a logistic regression on pooled features, and
`probe/dense_*`, Dice of a logistic regression on patch tokens against the label maps. A declared test split
is never read.

Ranks share the encoding, whole batches each, and sum what they found into zeros: the scores are the same
bits on any number of ranks. Samples are read by a thread while the device encodes. What it costs: one pass
forward over at most `max_samples` images a source; the default cadence keeps that within `SHARE` of the run.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..data.errors import ShardError
from ..data.loader.batches import collate
from ..data.stream.config import StreamConfig
from . import ranks
from .config import ProbeConfig
from .diagnostics import rankme
from .encoders import Encoder, Features
from .probe_scores import (
    balanced_accuracy,
    confusion,
    fit_linear,
    knn_predict,
    linear_predict,
    mean_dice,
    shares,
)
from .probe_sets import ProbeSet, images, load, load_mask, probe_sets
from .views import to_float

log = logging.getLogger(__name__)

BATCH = 32  # pictures a forward pass; volumes: a quarter
TOKENS = 20_000  # patches that the dense probe is fitted on
STRIDE = 8  # pixels: finest level of a convolutional network that the dense probe looks at
SHARE = 0.01  # of a run's work that probes may take where no cadence is given
PASSES = 1.2  # forward passes a sample that the cheapest step (MAE with a light decoder) costs

Context = Callable[[], contextlib.AbstractContextManager[Any]]


class Probe:
    """Callable (encoder, device) -> {"probe/knn_<dataset>": ..., "probe/rankme": ...}; collective."""

    def __init__(self, config: ProbeConfig, data: StreamConfig, sizes: Sequence[Sequence[int]] = ()) -> None:
        """Open the shards; which samples are looked at is decided when the first probe is due.

        Args:
            sizes: what meets the encoder, one a class of `data`; empty: the crops of the classes.

        Raises:
            ShardError: no shards at `config.shards`.
        """
        from ..data.remote.shards import open_shards

        self.config = config
        parts = [
            replace(part, crop=[int(n) for n in size])
            for part, size in zip(data.each(), sizes or [part.crop for part in data.each()], strict=True)
        ]
        self.data = {part.ndim: part for part in reversed(parts)}  # of equal axes, the first class
        self.shards = open_shards(replace(data, shards=config.shards or data.shards))
        self.images = images(self.shards.manifest, config, list(self.data))
        self._sets: dict[str, list[ProbeSet]] | None = None
        if not self.images:
            log.warning("probe: no source of %s has labels %r or label maps in %s; nothing is probed",
                        self.shards.root, config.label,
                        " and ".join(f"{n}D" for n in self.data))  # fmt: skip

    @property
    def sets(self) -> dict[str, list[ProbeSet]]:
        """The samples by kind; chosen on rank 0 and told to the others (a collective call, once)."""
        if self._sets is None:
            held: list[Any] = [None]
            if ranks.rank() == 0:
                held = [probe_sets(self.shards, self.config, list(self.data.values()))]
            if ranks.world() > 1:
                torch.distributed.broadcast_object_list(held)
            self._sets = held[0]
        assert self._sets is not None
        return self._sets

    def __call__(
        self, encoder: Encoder, device: torch.device, precision: Context = contextlib.nullcontext
    ) -> dict[str, float]:
        """Encode the samples and score each source. `precision` is what the encoder runs under."""
        scores: dict[str, float] = {}
        everything: list[Tensor] = []
        modes = {module: module.training for module in encoder.modules()}
        encoder.eval()
        try:
            with torch.no_grad():
                for chosen in self.sets["class"]:
                    features, valid = self.encode(chosen, encoder, device, precision)
                    everything.append(features[valid])
                    scores |= self._classes(chosen, features, valid)
                for chosen in self.sets["mask"]:
                    found = self.dense(chosen, encoder, device, precision)
                    scores[f"probe/dense_{chosen.name}"] = mean_dice(found)
        finally:
            for module, mode in modes.items():  # parts of a teacher are in different modes
                module.training = mode
        if everything:
            scores["probe/rankme"] = rankme(torch.cat(everything))
        return scores

    def encode(
        self, chosen: ProbeSet, encoder: Encoder, device: torch.device,
        precision: Context = contextlib.nullcontext,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Features float32 [n, 2E] on the CPU, pooled and mean patch token, each of length one.

        Returns:
            the features, and bool [n]: which samples could be read. On every rank (a collective call).
        """
        width = 2 * encoder.embed_dim
        features = torch.zeros(len(chosen.refs), width + 1, device=device)
        for at, samples, _ in self._own(chosen, range(len(chosen.refs))):
            with precision():
                found = encoder(self._image(samples, encoder, device))
            both = [found.pooled.float(), found.tokens.float().mean(dim=1)]
            features[at, :width] = torch.cat([torch.nn.functional.normalize(x, dim=1) for x in both], dim=1)
            features[at, width] = 1.0
        features = ranks.total(features).cpu()  # each row is one rank's, the others hold zeros
        return features[:, :width], features[:, width] > 0

    def _classes(self, chosen: ProbeSet, features: Tensor, valid: Tensor) -> dict[str, float]:
        query, found = self.answers(chosen, features, valid)
        truth = torch.from_numpy(chosen.labels)[query]
        return {
            f"probe/{score}_{chosen.name}": balanced_accuracy(truth, given) for score, given in found.items()
        }

    def answers(self, chosen: ProbeSet, features: Tensor, valid: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Classes that neighbours and the linear classifier give to the validation samples.

        Returns:
            bool [n], the samples that are asked; score -> int64 [asked], nothing where there are too few.
        """
        validation, labels = torch.from_numpy(chosen.validation), torch.from_numpy(chosen.labels)
        train, query = ~validation & valid, validation & valid
        known, count = labels[train], len(chosen.classes)
        if len(known.unique()) < 2 or not query.any():
            return query, {}
        # With more neighbours than a class has samples, that class could never win.
        k = min(self.config.k, int(known.bincount()[known.unique()].min()))
        found = {}
        if "knn" in self.config.scores:
            found["knn"] = knn_predict(features[train], known, features[query], k=k, classes=count)
        if "linear" in self.config.scores:
            found["linear"] = linear_predict(features[train], known, features[query], classes=count)
        return query, found

    def dense(
        self, chosen: ProbeSet, encoder: Encoder, device: torch.device,
        precision: Context = contextlib.nullcontext,
    ) -> Tensor:  # fmt: skip
        """Fit on patches of the training part; int64 [K, K] voxels by true and predicted class."""
        train = [i for i, side in enumerate(chosen.validation) if not side]
        query = [i for i, side in enumerate(chosen.validation) if side]
        classes = len(chosen.classes)
        most = max(1, TOKENS // len(train))
        held: Tensor | None = None  # [images, patches, E + K] of which each rank fills its own
        for at, samples, labels in self._own(chosen, train):
            tokens, grid = self._tokens(samples, encoder, device, precision)
            patches = torch.cat([tokens, shares(labels.to(device), grid, classes)], dim=2)
            every = -(-patches.shape[1] // most)
            kept = patches.shape[1] // every
            # Another first patch in each image: those of all rows and columns are seen.
            both = torch.stack([row[i % every :: every][:kept] for i, row in zip(at, patches, strict=True)])
            if held is None:
                held = both.new_zeros(len(train), *both.shape[1:])
            held[[train.index(i) for i in at]] = both
        held = self._together(held, len(train), device)
        known = held[..., -classes:].sum(dim=-1) > 0
        fitted = fit_linear(held[..., :-classes][known], held[..., -classes:][known])
        table = torch.zeros(classes, classes, dtype=torch.int64, device=device)
        for _, samples, labels in self._own(chosen, query):
            tokens, grid = self._tokens(samples, encoder, device, precision)
            table += confusion(fitted(tokens), grid, labels.to(device))
        return ranks.total(table)

    def _together(self, held: Tensor | None, count: int, device: torch.device) -> Tensor:
        """The patches of all ranks; a rank without a batch learns their shape from the others."""
        shape = torch.tensor([0, 0] if held is None else held.shape[1:], device=device)
        if ranks.world() > 1:
            torch.distributed.all_reduce(shape, op=torch.distributed.ReduceOp.MAX)
        if held is None:
            held = torch.zeros(count, *shape.tolist(), device=device)
        return ranks.total(held)

    def _own(
        self, chosen: ProbeSet, indices: Sequence[int]
    ) -> Iterator[tuple[list[int], list[dict[str, Any]], Tensor]]:
        """This rank's batches, read one ahead: (indices, samples, label maps) of what could be read."""
        size = BATCH if chosen.ndim == 2 else BATCH // 4
        batches = [list(indices[start : start + size]) for start in range(0, len(indices), size)]
        own = batches[ranks.rank() :: ranks.world()]
        with ThreadPoolExecutor(1) as reader:
            ahead = [reader.submit(self._read, chosen, batch) for batch in own[:1]]
            for number in range(len(own)):
                read = ahead.pop().result()
                ahead += [reader.submit(self._read, chosen, batch) for batch in own[number + 1 : number + 2]]
                if read:
                    at, samples, labels = zip(*read, strict=True)
                    yield list(at), list(samples), torch.stack(labels)

    def _read(self, chosen: ProbeSet, batch: Sequence[int]) -> list[tuple[int, dict[str, Any], Tensor]]:
        """Samples and label maps, int64 [*crop]; those of class sets are empty."""
        read = []
        for i in batch:
            ref, data, origin = chosen.refs[i], self.data[chosen.ndim], chosen.origins[i]
            try:
                sample, labels = load(self.shards, ref, data, origin), torch.empty(0)
                if chosen.kind == "mask":
                    labels = torch.from_numpy(load_mask(self.shards, ref, data, origin, chosen.classes))
                read.append((i, sample, labels))
            except ShardError as error:
                log.warning("probe: a sample of %s is left out: %s", chosen.name, error)
        return read

    def _image(self, samples: list[dict[str, Any]], encoder: Encoder, device: torch.device) -> Tensor:
        return to_float(on_device(collate(samples), device), encoder.in_channels)

    def _tokens(
        self, samples: list[dict[str, Any]], encoder: Encoder, device: torch.device, precision: Context
    ) -> tuple[Tensor, tuple[int, ...]]:
        """float32 [B, N, E] and their grid: patch tokens, or the levels of a convolutional network."""
        image = self._image(samples, encoder, device)
        with precision():
            found: Features = encoder(image, pyramid=encoder.convolutional)
        if not encoder.convolutional or not found.pyramid:
            return found.tokens.float(), tuple(found.grid or ())
        return _levels(found.pyramid, image.shape[2:])


def _levels(pyramid: Sequence[Tensor], spatial: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
    """All levels from stride `STRIDE` on, side by side at the finest of them (a hypercolumn)."""
    coarse = [level.float() for level in pyramid if level.shape[-1] * STRIDE <= spatial[-1]] or [
        pyramid[-1].float()
    ]
    grid = coarse[0].shape[2:]
    mode = "bilinear" if len(grid) == 2 else "trilinear"
    levels = [level if level.shape[2:] == grid else torch.nn.functional.interpolate(level, grid, mode=mode)
              for level in coarse]  # fmt: skip
    return torch.cat(levels, dim=1).flatten(2).transpose(1, 2), tuple(grid)


def cadence(config: ProbeConfig, images: int, steps: int, batch: float) -> int:
    """Steps from one probe to the next: as asked for, or as keeps probes within `SHARE` of the run; 0: never.

    Args:
        images: that one probe encodes. steps, batch: of the run.
    """
    if config.every_steps is not None or not images:
        return config.every_steps or 0
    every = math.ceil(images / (SHARE * PASSES * batch))
    if every > 2 * steps:  # one probe at the end would cost more than twice the share
        log.info("probe: none in a run of %d steps, where one of %d images costs over %d %% of it: "
                 "set probe.every_steps to have them", steps, images, round(200 * SHARE))  # fmt: skip
        return 0
    return max(every, 1)


def on_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A collated batch with its tensors on `device`."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
