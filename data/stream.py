"""Shards -> batches: a map-style dataset whose index is the position in the global order.

Everything that a sample becomes is a pure function of (seed, position): image, crop, channel. Workers, ranks
and restarts therefore never change a pixel, resume costs one integer, and any sampler of positions will do.
Pixels leave the worker in their native integers; normalisation and repeating grey channels happen on the
device (`pretrain/views.py`), which makes a batch up to twelve times smaller. The price: a batch that mixes
grey and colour, or 8 and 16 bit, is widened to the larger of both.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .crops import PICTURE_DRAWS, VOLUME_DRAWS, channel_choice, pad_to, picture_box, volume_box
from .draws import bits, uniform
from .errors import ConfigError, ShardError, nearest
from .normalise import Intensity, grey, intensity, kind, luminance
from .order import Order, SourceSize
from .preprocess import unpack_bricks
from .sample import MODALITIES, Modality
from .shards.format import partition
from .shards.manifest import SourceEntry
from .shards.reader import SampleRef, Shards
from .stream_config import StreamConfig

log = logging.getLogger(__name__)

_ATTEMPTS = 8  # substitutes for one position before the stream gives up
_MODALITY_CODES = {modality: code for code, modality in enumerate(MODALITIES)}


class Stream(Dataset):
    """Samples by position: index it with any position >= 0 of the run. Its length is one pass.

    A sample that cannot be read is replaced by another of the same source, drawn by (seed, position), and
    logged; more than `failure_budget` of them in one source stop the run.

    Args:
        config: see `StreamConfig`; checked here.
        shards: opened shards; None opens `config.shards`.

    Raises:
        ConfigError: the configuration contradicts itself, names an unknown source, or leaves none.
        ShardError: the folder is no finished build, or a shard is missing or of another size.
    """

    def __init__(self, config: StreamConfig, shards: Shards | None = None) -> None:
        config.check()
        self.config = config
        self.shards = Shards.open(config.shards) if shards is None else shards
        self.sources, self._first = self._selected()
        self.order = Order(
            [SourceSize(s.id, tuple(shard.count for shard in s.shards)) for s in self.sources],
            seed=config.seed,
            alpha=config.alpha,
            window=config.window,
            weights=self._weights(),
        )
        self._failed: dict[int, set[SampleRef]] = {}

    def __len__(self) -> int:
        return sum(source.count for source in self.sources)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """The sample at `position`; see `__getitems__`."""
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """Samples at these positions, one dictionary each.

        Keys: image [C, *crop] native dtype, C 1 or `in_channels`; low, high, mean, std float32 [C];
        position, modality (index into `MODALITIES`), key; spacing float32 [ndim], millimetres a pixel of the
        crop, 1 where unknown.

        Raises:
            ShardError: the failure budget of a source is spent.
        """
        at = np.asarray(positions, dtype=np.int64)
        found = self.order.locate(at)
        draws = uniform(self.config.seed, "crop", at, max(PICTURE_DRAWS, VOLUME_DRAWS))
        return [
            self._sample(
                int(position), int(source), SampleRef(self._first[source] + int(shard), int(ordinal)), u
            )
            for position, source, shard, ordinal, u in zip(
                at, found.source, found.shard, found.ordinal, draws.tolist(), strict=True
            )
        ]

    def _selected(self) -> tuple[list[SourceEntry], list[int]]:
        """Sources to read, and the number of the first shard of each."""
        manifest, config = self.shards.manifest, self.config
        known = {name for s in manifest.sources for name in (s.id, s.dataset)}
        for key in ("sources", "exclude", "weights"):
            for name in getattr(config, key):
                if name not in known:
                    where = f"data.{key} names {name!r}, not in {self.shards.root}"
                    raise ConfigError(where + nearest(name, known))
        chosen, first, number = [], [], 0
        for source in manifest.sources:
            names = {source.id, source.dataset}
            wanted = not config.sources or names & set(config.sources)
            if source.ndim == config.ndim and wanted and not names & set(config.exclude):
                chosen.append(source)
                first.append(number)
            number += len(source.shards)
        if not chosen:
            there = ", ".join(f"{s.id} ({s.ndim}D)" for s in manifest.sources) or "nothing"
            raise ConfigError(
                f"no {config.ndim}D source is left by data.sources/exclude; the shards hold {there}"
            )
        for entry in (shard for source in chosen for shard in source.shards):
            path = Path(self.shards.root) / entry.file
            size = path.stat().st_size if path.is_file() else -1
            if size != entry.bytes:
                is_ = "is missing" if size < 0 else f"has {size} bytes, the manifest says {entry.bytes}"
                raise ShardError(f"{path} {is_}: restore it, or build the shards again")
        return chosen, first

    def _weights(self) -> dict[str, float]:
        """Weights by source id; a dataset's weight goes to each of its sources, a source's own wins."""
        given = self.config.weights
        return {
            s.id: given.get(s.id, given.get(s.dataset, 1.0))
            for s in self.sources
            if {s.id, s.dataset} & set(given)
        }

    def _sample(self, position: int, source: int, ref: SampleRef, draws: list[float]) -> dict[str, Any]:
        for attempt in range(_ATTEMPTS):
            try:
                return self._read(ref, position, draws)
            except ShardError as error:
                self._note(source, ref, position, error)
            ref = self._substitute(source, position, attempt)
        raise ShardError(
            f"source {self.sources[source].id}: {_ATTEMPTS} samples in a row cannot be read (position "
            f"{position}); run `medloom shards check {self.shards.root}`"
        )

    def _substitute(self, source: int, position: int, attempt: int) -> SampleRef:
        """Another sample of the same source, the same on every rank, worker and restart."""
        words = bits(self.config.seed, f"substitute:{attempt}", [position], 1)
        turn = np.asarray([int(words[0, 0]) % self.sources[source].count])
        found = self.order.locate_in(np.asarray([source]), turn)
        return SampleRef(self._first[source] + int(found.shard[0]), int(found.ordinal[0]))

    def _note(self, source: int, ref: SampleRef, position: int, error: ShardError) -> None:
        """Log an unreadable sample once and count it."""
        failed = self._failed.setdefault(source, set())
        if ref not in failed:
            failed.add(ref)
            log.warning("sample replaced at position %d: %s", position, error)
        if len(failed) > self.config.failure_budget:
            raise ShardError(
                f"source {self.sources[source].id}: {len(failed)} samples cannot be read, "
                f"data.failure_budget is {self.config.failure_budget}; run "
                f"`medloom shards check {self.shards.root}`; last: {error}"
            )

    def _read(self, ref: SampleRef, position: int, draws: list[float]) -> dict[str, Any]:
        """Read one crop; its bytes and time follow the size of the crop, not of the image."""
        meta = self.shards.meta(ref)
        numbers = intensity(meta)
        if self.config.ndim == 2:
            image, spacing = self._picture(ref, meta, draws)
        else:
            image, spacing = self._volume(ref, meta, draws, numbers.low)
        image, numbers = self._channels(image, numbers, meta, position)
        return {
            "image": image,
            "low": numbers.low,
            "high": numbers.high,
            "mean": numbers.mean,
            "std": numbers.std,
            "spacing": spacing,
            "modality": _MODALITY_CODES[Modality(meta["modality"])],
            "key": meta["key"],
            "position": position,
        }

    def _picture(
        self, ref: SampleRef, meta: dict[str, Any], draws: list[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        size = self.config.crop
        box = picture_box(
            meta["shape"][1:], size, draws, area=self.config.crop_scale, aspect=self.config.aspect
        )
        image = self.shards.read_resized(ref, box, size)
        zoom = np.asarray([(box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1]], np.float32)
        return image, np.asarray(meta["spacing"] or (1.0, 1.0), np.float32) * zoom

    def _volume(
        self, ref: SampleRef, meta: dict[str, Any], draws: list[float], low: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        shape, spacing = meta["shape"], meta["spacing"]
        blocks = partition(shape, spacing, ndim=3)[1][-3:]
        origin, extent = volume_box(
            shape[1:],
            self.config.crop,
            draws,
            occupied=unpack_bricks(meta["stats"]),
            brick=meta["stats"]["bricks"]["size"],
            foreground=self.config.foreground,
            snap=[min(self.config.snap, block) for block in blocks],
        )
        image = pad_to(self.shards.read(ref, origin, extent), self.config.crop, low)
        return image, np.asarray(spacing or (1.0, 1.0, 1.0), np.float32)

    def _channels(
        self, image: np.ndarray, numbers: Intensity, meta: dict[str, Any], position: int
    ) -> tuple[np.ndarray, Intensity]:
        """Bring the image to one channel or to `in_channels`; one channel is repeated on the device."""
        stored, wanted = len(image), self.config.in_channels
        if stored == 1:
            return image, numbers
        if grey(meta):
            return image[:1], numbers.take([0])
        if stored == wanted:
            return image, numbers
        if wanted == 1 and kind(meta) == "colour":
            return luminance(image), numbers.luminance()
        draws = uniform(self.config.seed, "channels", [position], stored)[0]
        choice = channel_choice(stored, wanted, draws.tolist())
        return image[choice], numbers.take(choice)
