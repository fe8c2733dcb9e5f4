"""Shards -> plain files: NIfTI, JPEG, PNG, with a table a dataset, licences, and a collection to build again.

    OUT/DATASET/KEY.nii.gz, KEY_mask.nii.gz    volumes and label maps (pictures: .jpg .png .tif .npy)
    OUT/DATASET/metadata.csv, metadata.jsonl   a row an image: key, split, labels, modality, licence ...
    OUT/LICENCES.txt, OUT/collection.yaml      sources and licences; what `shards build` reads
    OUT/export.json                            which shards these files are from

Names are the salted keys, so that nothing in the folder names a person that the shards did not. Every file is
written atomically and a finished one is not written again: a killed export continues. Threads, not processes:
decoding and deflating release the interpreter's lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..atomic import sweep, write_bytes, write_json, write_text
from ..errors import ShardError, nearest
from ..locks import locked
from ..shards.manifest import SourceEntry
from ..shards.reader import SampleRef, Shards
from ..shards.writer import explain_os_errors
from . import nnunet_raw, plain
from .tables import Tables, collection_yaml, licences

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]

EXPORT = "export.json"
LAYOUTS = ("plain", "nnunet")
GROWTH = 1.4  # deflated NIfTI and PNG against the stored frames; measured 1.2 to 1.3


@dataclass(slots=True)
class Exported:
    """What an export did."""

    samples: int = 0
    written: int = 0  # files; the others were there already
    failures: list[tuple[str, str]] = field(default_factory=list)  # (shard and place, reason)


def export(
    folder: Path,
    out: Path,
    *,
    sources: Sequence[str] = (),
    keys: Sequence[str] = (),
    limit: int | None = None,
    layout: str = "plain",
    workers: int = 1,
    progress: Progress | None = None,
) -> Exported:
    """Write samples of the shards in `folder` as plain files below `out`; continues what was begun.

    Args:
        sources: ids of sources (`derm-2d`) or datasets (`derm`); empty: all.
        keys: only these samples.
        limit: at most so many samples of each source.
        layout: "plain", or "nnunet" for nnU-Net's raw data (one dataset of volumes).
        progress: called with (samples done, all samples, "export | source").

    Raises:
        ShardError: no such source or key; `out` holds something else; the disk is full or would be.
    """
    shards = Shards.open(folder)
    chosen = _chosen(shards, sources)
    refs = _refs(shards, chosen, keys, limit)
    plan = nnunet_raw.plan(shards, [ref for _, ref in refs]) if layout == "nnunet" else None
    with _claimed(out, {"layout": layout, "shards": _identity(shards)}):
        _check_space(out, refs)
        result = Exported(samples=len(refs))
        if progress:
            progress(0, len(refs), f"export | {refs[0][0].id}")
        with explain_os_errors(out, 0), Tables(out, chosen, flat=plan is not None) as tables:
            outcomes = _Work(shards, out, plan).run(refs, workers)
            for number, (source, outcome) in enumerate(outcomes, 1):
                if isinstance(outcome, str):
                    result.failures.append((source.id, outcome))
                    log.warning("%s: not exported: %s", source.id, outcome)
                else:
                    meta, file, mask, written = outcome
                    result.written += written
                    tables.add(meta, file, mask)
                if progress:
                    progress(number, len(refs), f"export | {source.id}")
        with explain_os_errors(out, 0):
            write_text(out / "LICENCES.txt", licences(chosen))
            if plan is not None:
                write_json(out / "dataset.json", plan.facts(chosen[0]))
            else:
                write_text(out / "collection.yaml", collection_yaml(shards.manifest.name, chosen, tables))
    return result


Outcome = tuple[dict[str, Any], str, str | None, int]  # key.json, image file, mask file, files written


class _Work:
    """Exports samples in threads, each with a reader of its own; results in order."""

    def __init__(self, shards: Shards, out: Path, plan: nnunet_raw.Plan | None) -> None:
        self._root, self._out, self._plan = shards.root, out, plan
        self._local = threading.local()

    def run(
        self, refs: Sequence[tuple[SourceEntry, SampleRef]], workers: int
    ) -> Iterator[tuple[SourceEntry, Outcome | str]]:
        """Yield (source, outcome | reason) a sample."""
        waiting: deque[tuple[SourceEntry, Future]] = deque()
        pool = ThreadPoolExecutor(max(1, workers))
        try:
            for source, ref in refs:
                waiting.append((source, pool.submit(self._one, source, ref)))
                while len(waiting) > 4 * workers:
                    yield self._outcome(*waiting.popleft())
            while waiting:
                yield self._outcome(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    @staticmethod
    def _outcome(source: SourceEntry, future: Future) -> tuple[SourceEntry, Any]:
        try:
            return source, future.result()
        except _Unwritable as error:
            raise error.cause from error
        except ShardError as error:
            return source, str(error)

    def _one(self, source: SourceEntry, ref: SampleRef) -> Outcome:
        shards = getattr(self._local, "shards", None)
        if shards is None:
            shards = self._local.shards = Shards.open(self._root)
        meta = shards.meta(ref)
        if self._plan is not None:
            files = self._plan.files(shards, ref, meta)
            return meta, files[0][0], self._plan.mask_name(meta), self._write(files)
        stem = f"{source.dataset}/{meta['key']}"
        names = [stem + plain.LOSSY, stem + plain.suffix_of(meta)]
        there = next((name for name in names if (self._out / name).is_file()), None)
        mask = f"{stem}_mask{plain.mask_suffix_of(meta)}" if meta["mask"] else None
        if there and (mask is None or (self._out / mask).is_file()):
            return meta, there, mask, 0
        sample = shards.sample(ref)
        name = names[0] if sample.jpeg is not None else names[1]
        files = [(name, lambda: sample.jpeg or plain.image_bytes(sample.image, meta))]
        if mask is not None and sample.mask is not None:
            labels = sample.mask
            files.append((mask, lambda: plain.mask_bytes(labels, meta)))
        return meta, name, mask, self._write(files)

    def _write(self, files: Sequence[tuple[str, Callable[[], bytes]]]) -> int:
        written = 0
        for name, make in files:
            path = self._out / name
            if path.is_file():
                continue
            data = make()
            try:
                with explain_os_errors(path, 0):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_bytes(path, data)
            except ShardError as error:
                raise _Unwritable(error) from error
            written += 1
        return written


class _Unwritable(Exception):
    """The disk refuses: unlike a damaged sample, this ends the export."""

    def __init__(self, cause: ShardError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _chosen(shards: Shards, wanted: Sequence[str]) -> list[SourceEntry]:
    """Sources by id or dataset. Raises ShardError for a word that is neither."""
    sources = shards.manifest.sources
    known = {word for source in sources for word in (source.id, source.dataset)}
    for word in wanted:
        if word not in known:
            raise ShardError(f"{shards.root}: no source {word!r}{nearest(word, known)}")
    return [s for s in sources if not wanted or s.id in wanted or s.dataset in wanted]


def _refs(
    shards: Shards, sources: Sequence[SourceEntry], keys: Sequence[str], limit: int | None
) -> list[tuple[SourceEntry, SampleRef]]:
    by_id = {source.id: source for source in sources}
    if keys:
        found = sorted({shards.find(key) for key in keys})
        pairs = [(shards.source_of(ref.shard), ref) for ref in found]
        refs = [(by_id[source.id], ref) for source, ref in pairs if source.id in by_id]
    else:
        refs = [(s, ref) for s in sources for ref in itertools.islice(shards.refs(s.id), limit)]
    if not refs:
        raise ShardError(f"{shards.root}: nothing to export; see --sources, --keys and --limit")
    return refs


def _identity(shards: Shards) -> str:
    rows = sorted((shard.file, shard.sha256) for shard in shards.manifest.shards)
    return hashlib.blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest()


def _check_space(out: Path, refs: Sequence[tuple[SourceEntry, SampleRef]]) -> None:
    """Refuse before hours of writing. Raises ShardError with both numbers."""
    needed = GROWTH * sum(source.bytes / max(1, source.count) for source, _ in refs)
    there = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    free = shutil.disk_usage(out).free
    if free < needed - there:
        raise ShardError(
            f"{out}: {free:,} bytes free, about {int(needed - there):,} are needed; "
            "choose another disk, or fewer samples with --sources or --limit"
        )


@contextlib.contextmanager
def _claimed(out: Path, identity: dict[str, Any]) -> Iterator[None]:
    """Make `out` or check that it belongs to this export, lock it, and sweep what a killed one left."""
    with explain_os_errors(out, 0):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out, "another export is"):
        path = out / EXPORT
        if path.is_file():
            if json.loads(path.read_text(encoding="utf-8")) != identity:
                raise ShardError(
                    f"{out}: holds an export of other shards or another layout; choose a new folder"
                )
        elif any(out.iterdir()):
            raise ShardError(f"{out}: holds other files and no export; choose an empty or a new folder")
        with explain_os_errors(out, 0):
            write_json(path, identity)
            for folder in (out, *(entry for entry in out.iterdir() if entry.is_dir())):
                sweep(folder)
        yield
