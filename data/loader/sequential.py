"""Sequential mode: tars are read from end to end, for stores and disks that are slow at random access.

A pipeline of webdataset (open, expand, group, shuffle) between our own splitter and our own decoders. The
splitter deals an endless sequence of shards, each source in a new permutation every pass, to ranks x workers
by arithmetic on explicit numbers: no environment variable, no global seed, no end that a rank could meet
before another, and a worker meets other shards on every pass. Members are verified against the index before
they are decoded, and so is that none is missing. Crops are those of the random mode, keyed by position.

What is given up: samples are mixed only inside the buffer of a worker and among workers, not among all
shards; which sample stands at a position depends on ranks, workers and batch size; a resumed run starts at
the beginning of the shard that each worker was in (less its buffer), so that about one shard a worker is seen
again, with other crops; and an epoch is not exact (`data.epoch` must be `steps`). A worker reads whole
samples, so a volume costs all its bytes for one crop: raise `data.crops_per_sample`.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import random
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
from torch.utils.data import get_worker_info

from ..draws import stream_key, uniform
from ..errors import ConfigError, MedloomError, ShardError
from ..remote.shards import RemoteFolder
from ..remote.stores import Remote
from ..shards.format import DAMAGED, checksum
from ..shards.index import Index, key_hash
from ..shards.opened import OpenShard
from ..shards.reader import SampleRef
from ..stream.crop_reader import CROP_DRAWS, CropReader, Place
from ..stream.mixing import Turns
from ..stream.order import permute
from ..stream.quarantine import Entry
from ..stream.stream import Stream

log = logging.getLogger(__name__)

FRUITLESS = 8  # shards without a sound sample before the run stops
BUFFER = {2: 1000, 3: 16}  # samples that a worker mixes, by `ndim`, as they are stored: some 100 MB


class Deal:
    """The endless sequence of shards: turn -> shard number; lane k of K has the turns k, k + K, ...

    A source comes as often as gives its samples their share of the order; its shards come in a new
    permutation on each pass.
    """

    def __init__(self, stream: Stream) -> None:
        part = stream.classes[0]
        self._seed, self._sources, self._first = stream.config.seed, part.sources, part.first
        sizes = np.asarray([source.count / len(source.shards) for source in self._sources])
        self._turns = Turns((part.order.probabilities / sizes).tolist())

    def shards(self, turns: np.ndarray) -> list[int]:
        """Shard numbers, in manifest order, at these turns int64 [B]."""
        source, occurrence = self._turns.at(turns)
        found = []
        for i, n in zip(source.tolist(), occurrence.tolist(), strict=True):
            size = len(self._sources[i].shards)
            key = stream_key(self._seed, f"sequential:{self._sources[i].id}:{n // size}")
            place = permute(np.asarray([n % size]), size, np.asarray([key], np.uint64))
            found.append(self._first[i] + int(place[0]))
        return found


class SequentialSamples:
    """Samples for one rank, as `Stream` gives them; ask in the order of the micro-batches.

    Args:
        stream: opened; gives sources, crops and quarantine.
        workers: processes of the loader; 0 counts as one.
        batches: micro-batches of this rank that were read before.
        batch: samples of a micro-batch.

    Raises:
        ConfigError: the stream has several shape classes, or exact epochs.
    """

    def __init__(
        self, stream: Stream, *, rank: int, world: int, workers: int, batches: int, batch: int
    ) -> None:
        config = stream.config
        if len(stream.classes) > 1 or config.epoch != "steps":
            raise ConfigError(
                "data.mode sequential reads one shape class without exact epochs: leave out data.classes and "
                "set data.epoch=steps, or set data.mode=random"
            )
        self.stream, self._deal = stream, Deal(stream)
        self._rank, self._workers, self._lanes = rank, max(1, workers), world * max(1, workers)
        self._batches, self._buffer = batches, config.buffer or BUFFER[config.ndim]
        self._samples = -(-batch // config.crops_per_sample)  # of a micro-batch
        self._reading: Iterator[tuple[OpenShard, SampleRef, list[Entry]]] | None = None
        self._fruitless = 0
        self._last: tuple[int, OpenShard, SampleRef] | None = None
        shards = sum(len(source.shards) for source in stream.classes[0].sources)
        if self._lanes > shards:
            log.warning(
                "data.mode sequential: %d shards for %d ranks x %d workers: several read the same shard at "
                "the same time; lower data.workers, or build smaller shards",
                shards,
                world,
                self._workers,
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reading": None, "_last": None}

    def __getitems__(
        self, positions: Sequence[int], place: Callable[[int], Place] | None = None
    ) -> list[dict[str, Any]]:
        """The next samples of this worker, cropped as at these positions; see `Stream.__getitems__`.

        Raises:
            ShardError: the failure budget of a source is spent.
            StoreError: the store cannot be read.
        """
        config, crops = self.stream.config, self.stream.config.crops_per_sample
        draws = uniform(config.seed, "crop", np.asarray(positions), CROP_DRAWS).tolist()
        samples = []
        for row, (position, drawn) in enumerate(zip(positions, draws, strict=True)):
            opened, ref, replaced = self._sample(position // crops)
            reader = CropReader(config, cast(Any, _Passing(opened)), self.stream.targets)
            meta, here = opened.meta(ref.ordinal), place(row) if place else None
            samples.append(reader.read(ref, meta, position, drawn, here) | {"replaced": replaced})
        return samples

    def _sample(self, anchor: int) -> tuple[OpenShard, SampleRef, list[Entry] | None]:
        """The sample of these positions: the one before when they share it, else the next."""
        if self._last is not None and self._last[0] == anchor:
            return self._last[1], self._last[2], None
        if self._reading is None:
            worker = get_worker_info()
            self._reading = self._pipeline(0 if worker is None else worker.id)
        opened, ref, replaced = next(self._reading)
        self._last = anchor, opened, ref
        return opened, ref, replaced or None

    def lane(self, worker: int) -> tuple[int, int]:
        """Lane of a worker, and the turn of that lane at which it starts."""
        # Loader worker w has the micro-batches w, w + workers, ... counted from where this iteration starts.
        own = (self._batches + worker) % self._workers
        done = (self._batches - own + self._workers - 1) // self._workers * self._samples
        done -= self._buffer
        lane, turn = self._rank * self._workers + own, 0
        counts = [entry.count for entry in self.stream.shards.manifest.shards]
        while done >= (count := counts[self._shard(lane, turn)]):
            done, turn = done - count, turn + 1
        return lane, turn

    def _pipeline(self, worker: int) -> Iterator[tuple[OpenShard, SampleRef, list[Entry]]]:
        import webdataset
        from webdataset.tariterators import group_by_keys, tar_file_expander

        lane, turn = self.lane(worker)
        rng = random.Random(stream_key(self.stream.config.seed, f"buffer:{lane}:{turn}"))
        pipeline = webdataset.DataPipeline(  # pyright: ignore[reportAttributeAccessIssue]
            functools.partial(self._opened, lane, turn),
            functools.partial(tar_file_expander, handler=_next_shard),
            functools.partial(group_by_keys, handler=_next_shard),
            functools.partial(self._verified, lane, turn),
            webdataset.shuffle(self._buffer, initial=self._buffer // 2 + 1, rng=rng),  # pyright: ignore
        )
        return iter(cast(Any, pipeline))

    def _shard(self, lane: int, turn: int) -> int:
        return self._deal.shards(np.asarray([lane + self._lanes * turn]))[0]

    def _opened(self, lane: int, turn: int) -> Iterator[dict[str, Any]]:
        """Our splitter: the shards of a lane, opened, for ever."""
        entries, folder = self.stream.shards.manifest.shards, self.stream.shards.folder
        while True:
            shard = self._shard(lane, turn)
            if self._fruitless == FRUITLESS:
                raise ShardError(
                    f"{FRUITLESS} shards in a row hold no sound sample; run `medloom shards check` where "
                    "they were built"
                )
            self._fruitless += 1
            if isinstance(folder, RemoteFolder) and folder.cache is not None and not folder.ranged:
                stream: Any = os.fdopen(folder.cache.open(entries[shard], folder.store), "rb")
            elif isinstance(folder, RemoteFolder):
                raw = _Pieces(folder.store, entries[shard].file, entries[shard].bytes)
                stream = io.BufferedReader(raw, 1 << 20)
            else:
                stream = (cast(Any, folder).root / entries[shard].file).open("rb")
            with stream:
                yield {"url": str(turn), "stream": stream}
            turn += 1

    def _verified(
        self, lane: int, turn: int, samples: Any
    ) -> Iterator[tuple[OpenShard, SampleRef, list[Entry]]]:
        """Whole and sound samples; what is damaged or missing is noted with the next sound one."""
        notes: list[Entry] = []
        seen: set[int] = set()
        for sample in samples:
            now = int(sample["__url__"])
            if now != turn:
                for missed in range(turn, now):
                    notes += self._missing(self._shard(lane, missed), seen)
                    seen = set()
                turn = now
            shard = self._shard(lane, turn)
            index = self.stream.shards.index(shard)
            found = np.flatnonzero(index.samples["key_hash"] == np.uint64(key_hash(sample["__key__"])))
            if not len(found):
                continue  # a damaged name; the sample is noted as missing
            ordinal = int(found[0])
            seen.add(ordinal)
            opened, reason = self._open(shard, index, ordinal, sample)
            if reason:
                notes += self._note(shard, ordinal, sample["__key__"], reason)
            else:
                self._fruitless = 0
                yield opened, SampleRef(shard, ordinal), notes
                notes = []

    def _open(self, shard: int, index: Index, ordinal: int, sample: dict[str, Any]) -> tuple[OpenShard, str]:
        """The sample as a shard of which only its members are there, and what is wrong with it."""
        members = [value for name, value in sample.items() if not name.startswith("__")]
        rows, reason = index.members_of(ordinal), ""
        if len(members) != len(rows):
            reason = f"{len(members)} of {len(rows)} members are there; {DAMAGED}"
        elif any(len(d) != r.size or checksum(d) != r.crc for d, r in zip(members, rows, strict=True)):
            reason = f"checksum differs; {DAMAGED}"
        starts = [row.offset for row in rows]

        def fetch(ranges: Sequence[tuple[int, int]]) -> Iterator[memoryview]:
            for offset, size in ranges:
                number = max(n for n, start in enumerate(starts) if start <= offset)
                yield memoryview(members[number])[offset - starts[number] :][:size]

        name = f"{self.stream.shards.root}/{self.stream.shards.manifest.shards[shard].file}"
        return OpenShard(name, index, fetch), reason

    def _missing(self, shard: int, seen: set[int]) -> list[Entry]:
        count = self.stream.shards.manifest.shards[shard].count
        lost = [ordinal for ordinal in range(count) if ordinal not in seen]
        notes: list[Entry] = []
        for ordinal in lost:
            notes += self._note(shard, ordinal, "", f"the tar ends or breaks before it; {DAMAGED}")
        return notes

    def _note(self, shard: int, ordinal: int, key: str, reason: str) -> list[Entry]:
        file = self.stream.shards.manifest.shards[shard].file
        entry = {"shard": file, "sample": ordinal, "member": "", "key": key, "reason": reason}
        self.stream.quarantine.note(entry)
        return [entry]


class _Passing:
    """The sample that passes, as `CropReader` asks `Shards` for it."""

    def __init__(self, opened: OpenShard) -> None:
        self._opened = opened

    def read(
        self, ref: SampleRef, origin: Any, shape: Any, *, channels: Any = None, out: Any = None
    ) -> np.ndarray:
        return self._opened.read(ref.ordinal, origin, shape, channels, out)

    def read_resized(self, ref: SampleRef, box: Sequence[float], size: Sequence[int]) -> np.ndarray:
        return self._opened.read_resized(ref.ordinal, box, size)

    def read_mask_resized(
        self, ref: SampleRef, box: Sequence[float], size: Sequence[int]
    ) -> np.ndarray | None:
        return self._opened.read_mask_resized(ref.ordinal, box, size)


class _Pieces(io.RawIOBase):
    """A file of a store, from its first byte to its last."""

    def __init__(self, store: Remote, file: str, size: int) -> None:
        self._pieces, self._rest = store.pieces(file, size), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def _next_shard(error: Exception) -> bool:
    """webdataset's question what to do: a broken tar is left, and its missing samples noted; else raise."""
    error.args = error.args[:1]  # webdataset adds its streams
    if isinstance(error, MedloomError) or not isinstance(error, (tarfile.TarError, ValueError, EOFError)):
        raise error
    log.warning("a shard cannot be read to its end: %s", error)
    return True
