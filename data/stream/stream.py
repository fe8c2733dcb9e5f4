"""Shards -> samples: a map-style dataset whose index is the position in the global order.

Everything that a sample becomes is a pure function of (seed, position): image, crop, channel. Workers, ranks
and restarts therefore never change a pixel, resume costs one integer a shape class, and any sampler of
positions will do. Pixels leave the worker in their native integers (`crop_reader.py`). The price: a batch
that mixes grey and colour, or 8 and 16 bit, is widened to the larger of both.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, get_worker_info

from ..draws import uniform
from ..errors import CheckpointError, ConfigError, ShardError
from ..remote.ahead import Ahead
from ..remote.shards import RemoteFolder, open_shards
from ..shards.manifest import SourceEntry
from ..shards.reader import SampleRef, Shards
from .config import StreamConfig
from .crop_reader import CROP_DRAWS, Place
from .quarantine import Entry, Quarantine, log_replaced
from .shapes import ShapeStream
from .steps import StepPlan
from .targets import Targets

_ATTEMPTS = 8  # substitutes for one position before the stream gives up


class Stream(Dataset):
    """Samples by position: index it with any position >= 0 of the run. Its length is one pass.

    With K shape classes, position p belongs to class p % K, whose position p // K it is; `plan` says which
    positions a step reads. A sample that cannot be read is replaced by another of the same source, drawn by
    (seed, position), and noted in `quarantine`; more than `failure_budget` in one source stop the run.

    Args:
        config: see `StreamConfig`; checked here.
        shards: opened shards; None opens `config.shards`.
        quarantine: file that keeps the unreadable samples of the run; None: this process remembers them.

    Raises:
        ConfigError: the configuration contradicts itself, names an unknown source, or leaves none.
        ShardError: the folder is no finished build, or a shard is missing or of another size; the quarantine
            lists more than the failure budget.
    """

    def __init__(
        self, config: StreamConfig, shards: Shards | None = None, *, quarantine: Path | None = None
    ) -> None:
        config.check()
        self.config = config
        self.shards = open_shards(config) if shards is None else shards
        several = len(config.classes) > 1
        self.classes = [
            ShapeStream(part, self.shards, f"class {number}:" if several else "", classes=len(config.each()))
            for number, part in enumerate(config.each())
        ]
        self.targets: Targets | None = None
        if config.labels or config.masks:
            self.targets = Targets(config, self.shards, self.sources)
            for part in self.classes:
                part.crops.targets = self.targets
        folder = self.shards.folder
        if isinstance(folder, RemoteFolder) and not folder.ranged:
            ahead = Ahead(self.shards, folder)
            for part in self.classes:
                part.ahead = ahead
        self.plan = StepPlan.of(config)
        self._files = [entry.file for entry in self.shards.manifest.shards]
        owners = {e.file: source.id for source in self.shards.manifest.sources for e in source.shards}
        self.quarantine = Quarantine(self.shards.root, owners, config.failure_budget, quarantine)

    @property
    def sources(self) -> list[SourceEntry]:
        """Sources of all classes, in manifest order."""
        read = {source.id for part in self.classes for source in part.sources}
        return [source for source in self.shards.manifest.sources if source.id in read]

    def __len__(self) -> int:
        return sum(source.count for part in self.classes for source in part.sources)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """The sample at `position`; see `__getitems__`."""
        return self.__getitems__([position])[0]

    def __getitems__(
        self, positions: Sequence[int], place: Callable[[int], Place] | None = None
    ) -> list[dict[str, Any]]:
        """Samples at these positions, one dictionary each.

        Args:
            place: row -> what gives the memory that its image may be decoded into (see `batches.Canvas`).

        Keys: image [C, *crop] native dtype, C 1 or `in_channels`; low, high, mean, std float32 [C];
        position, modality (index into `MODALITIES`), key; spacing float32 [ndim], millimetres a pixel of the
        crop, 1 where unknown; replaced, None or a list of the unreadable samples (shard, sample, member, key,
        reason) in whose place this one stands. With `data.labels`: label, the number of its class in
        `targets.classes`, or -1; with `data.masks`: mask int16 [*crop], numbers of `targets.structures`, or
        -1, on the pixels of the crop. With `data.zoom` the image is [C, *box], what is stored, and `zoomed`
        says how it fills the crop; `views.to_float` does it.

        Raises:
            ShardError: the failure budget of a source is spent.
        """
        at = np.asarray(positions, dtype=np.int64).reshape(-1)
        kinds = at % len(self.classes)
        samples: dict[int, dict[str, Any]] = {}
        for kind in np.unique(kinds).tolist():
            rows = np.flatnonzero(kinds == kind)
            places = [place(row) if place else None for row in rows.tolist()]
            found = self._of_class(self.classes[kind], at[rows], places)
            samples.update(zip(rows.tolist(), found, strict=True))
        return [samples[row] for row in range(len(at))]

    def _of_class(
        self, part: ShapeStream, at: np.ndarray, places: list[Place | None]
    ) -> list[dict[str, Any]]:
        """Samples at positions `at` [B] of the run, all of this class."""
        k, crops = len(self.classes), part.order.crops
        local = at // k
        # Crops of one sample are replaced together: the first of their positions draws the substitute.
        anchors = (at - k * (local % crops)).tolist()
        draws = uniform(part.config.seed, "crop", at, CROP_DRAWS).tolist()
        metas: dict[SampleRef, dict[str, Any]] = {}
        return [
            self._sample(part, source, ref, position, anchor, u, metas, place)
            for position, anchor, (source, ref), u, place in zip(
                at.tolist(), anchors, part.locate(local), draws, places, strict=True
            )
        ]

    def _sample(
        self,
        part: ShapeStream,
        source: int,
        ref: SampleRef,
        position: int,
        anchor: int,
        draws: list[float],
        metas: dict[SampleRef, dict[str, Any]],
        place: Place | None,
    ) -> dict[str, Any]:
        replaced: list[Entry] = []
        for attempt in range(_ATTEMPTS):
            entry = self.quarantine.get(self._files[ref.shard], ref.ordinal)
            if entry is None:
                try:
                    if ref not in metas:
                        metas[ref] = self.shards.meta(ref, ahead=True)
                    sample = part.crops.read(ref, metas[ref], position, draws, place)
                    return sample | {"replaced": replaced or None}
                except ShardError as error:
                    entry = self._note(ref, metas.get(ref), error)
            replaced.append(entry)
            ref = part.substitute(source, anchor, attempt)
        raise ShardError(
            f"source {part.sources[source].id}: {_ATTEMPTS} samples in a row cannot be read (position "
            f"{position}); run `medloom shards check {self.shards.root}`, then "
            f"`medloom shards repair {self.shards.root}`"
        )

    def _note(self, ref: SampleRef, meta: dict[str, Any] | None, error: ShardError) -> Entry:
        """Remember a sample that cannot be read; the main process logs it, a worker leaves that to it."""
        member = error.member
        entry = {
            "shard": self._files[ref.shard],
            "sample": ref.ordinal,
            "member": member,
            "key": meta["key"] if meta is not None else member.partition(".")[0],
            "reason": str(error).replace(f"{self.shards.root}/", ""),
        }
        if get_worker_info() is None:
            log_replaced(entry)
        self.quarantine.note(entry)
        return entry

    @cached_property
    def _manifest(self) -> str:
        return self.shards.manifest.hash[:16]

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with anything that changes the order or the shares of the classes."""
        if len(self.classes) == 1:
            return self.classes[0].order.fingerprint
        facts = [[part.order.fingerprint for part in self.classes], self.plan.shares]
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()

    def state(self, consumed: Sequence[int]) -> dict[str, Any]:
        """All that a checkpoint needs, under 200 bytes as JSON and the same on every rank.

        Args:
            consumed: positions of each class trained on, over all ranks; never what a loader has read ahead.
        """
        return {
            "order": self.fingerprint,
            "manifest": self._manifest,
            "seed": self.config.seed,
            "alpha": self.config.alpha,
            "consumed": int(consumed[0]) if len(consumed) == 1 else [int(n) for n in consumed],
        }

    def resume(self, state: Mapping[str, Any]) -> list[int]:
        """Return the positions of each class to go on from: `consumed` of a state.

        Raises:
            CheckpointError: the state belongs to another order (seed, sources, mixing) or other shards.
        """
        now = self.state([0] * len(self.classes))
        for key in ("seed", "alpha", "manifest", "order"):
            if state.get(key) != now[key]:
                raise CheckpointError(
                    f"cannot resume: data {key} was {state.get(key)} and is {now[key]}; resume with the "
                    "shards and the data section of the run, or start a new run with init_from"
                )
        consumed = state["consumed"]
        return [int(n) for n in (consumed if isinstance(consumed, list) else [consumed])]

    def steps_for(self, epochs: float) -> int:
        """Optimiser steps in which every class has `epochs` epochs; the last step may read beyond.

        Raises:
            ConfigError: `data.epoch` is "steps", which has no epochs.
        """
        wanted = []
        for part, batch in zip(self.classes, self.plan.batch_sizes, strict=True):
            length = part.order.epoch_samples
            if length is None:
                raise ConfigError(
                    f"trainer.epochs is {epochs:g}, but data.epoch is steps: choose data.epoch=strict (each "
                    "sample once) or data.epoch=cover (small sources repeat), or give trainer.steps"
                )
            wanted.append(math.ceil(epochs * length / batch))
        return self.plan.steps_until(wanted)

    def describe(self, steps: int) -> list[str]:
        """Lines for the log: what each source gives in so many steps, class by class."""
        lines = [] if self.targets is None else self.targets.describe()
        for number, (part, samples) in enumerate(zip(self.classes, self.plan.consumed(steps), strict=True)):
            shape = "×".join(map(str, part.config.crop))
            head = f"class {number} ({shape}): " if len(self.classes) > 1 else ""
            if part.order.epoch_samples:
                lines.append(
                    f"{head}{samples} samples are {samples / part.order.epoch_samples:.2f} epochs "
                    f"({part.order.epoch}) of {part.order.epoch_samples}"
                )
            lines += [head + line for line in part.order.describe(samples)]
        return lines
