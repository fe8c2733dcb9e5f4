"""Task data: the record's source becomes shards once, and cases are read from them.

The choice: a task is read through the same readers, checks and shards as pretraining, so that what an encoder
was trained on and what it is scored on went through one code. Shards lie in a cache named by the source, its
root and the salt; building them again costs a scan. Small cases stay decoded in memory (1 GiB at most, native
dtype); of larger ones only the box that is needed is read.

Everything written here carries salted keys only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.atomic import replacing, write_text
from ..data.collection import Collection, scan
from ..data.config import to_yaml
from ..data.errors import CollectionError
from ..data.ingest.build import build
from ..data.locks import alone
from ..data.privacy import salt_fingerprint, subject_key
from ..data.shards.reader import SampleRef, Shards
from .detection.boxes import Boxes, survey
from .record import WHOLE, TaskRecord
from .splits import Item
from .targets import read_target, strata, words_of

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
_KEPT_BYTES = 1 << 30  # decoded cases kept in memory, all together
_KEPT_CASE = 64 << 20  # a larger case is read box by box
_LOCATIONS = 400  # voxels remembered per case and structure, to centre crops on


@dataclass(frozen=True, slots=True)
class Case:
    """One case of a task."""

    ref: SampleRef
    meta: dict[str, Any]
    label: int = -1  # stratum of a drawn split; index in the record's classes where there are such
    target: tuple[float, ...] = ()  # what is to be predicted of the whole image (targets.py)

    @property
    def key(self) -> str:
        """Salted key."""
        return self.meta["key"]

    @property
    def subject(self) -> str:
        """Salted subject."""
        return self.meta["subject"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape as stored."""
        return tuple(self.meta["shape"][1:])

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Millimetres in array order, None for plain pictures."""
        return tuple(self.meta["spacing"]) if self.meta.get("spacing") else None


@dataclass(slots=True)
class TaskData:
    """All cases of a task, and access to their pixels."""

    shards: Shards
    cases: list[Case]
    skipped: list[dict[str, str]]  # {"key", "reason"}: cases of the source that the task cannot use
    rank: dict[str, int]  # subject -> position in the source's sorted subject names
    locations: dict[str, dict[int, np.ndarray]] = field(
        default_factory=dict
    )  # key -> output -> int [n, ndim]
    boxes: dict[str, Boxes] = field(default_factory=dict)  # detection: key -> reference boxes
    values: list[int] = field(default_factory=list)  # mask values; output i + 1 stands for values[i]
    _kept: OrderedDict[tuple[SampleRef, bool], np.ndarray] = field(default_factory=OrderedDict)
    _bytes: int = 0

    def items(self) -> list[Item]:
        """What the split needs to know."""
        return [Item(case.key, case.subject, case.meta.get("split"), case.label) for case in self.cases]

    def image(
        self, case: Case, origin: Sequence[int] | None = None, shape: Sequence[int] | None = None
    ) -> np.ndarray:
        """Image [C, *shape] in native dtype, whole or a box that lies inside."""
        return self._read(case, origin, shape, mask=False)

    def mask(
        self, case: Case, origin: Sequence[int] | None = None, shape: Sequence[int] | None = None
    ) -> np.ndarray:
        """Output indices [*shape], uint8: 0 background, i the i-th structure in ascending mask value."""
        return self._read(case, origin, shape, mask=True)

    def of_masks(
        self,
        path: Path,
        describe: Callable[[Case, np.ndarray], Mapping[str, np.ndarray]],
        what: str,
        progress: Progress | None,
    ) -> dict[str, np.ndarray]:
        """Arrays by name that `describe` makes of the label maps; each map is read once, `path` keeps them.

        Args:
            describe: (case, label map as it is stored) -> arrays; names are unique over all cases.
            what: is made, for the progress line.
        """
        if not path.exists():
            found: dict[str, np.ndarray] = {}
            for done, case in enumerate(self.cases):
                if progress:
                    progress(done + 1, len(self.cases), what)
                labels = self.shards.read_mask(case.ref)
                assert labels is not None
                found.update(describe(case, labels))
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **found)
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    def _read(
        self, case: Case, origin: Sequence[int] | None, shape: Sequence[int] | None, mask: bool
    ) -> np.ndarray:
        whole = self._kept.get((case.ref, mask))
        if whole is None and self._size(case, mask) <= _KEPT_CASE:
            whole = self._load(case, None, None, mask)
            self._keep((case.ref, mask), whole)
        if whole is None:
            return self._load(case, origin, shape, mask)
        self._kept.move_to_end((case.ref, mask))
        if origin is None or shape is None:
            return whole
        box = tuple(slice(o, o + s) for o, s in zip(origin, shape, strict=True))
        return whole[box] if mask else whole[(slice(None), *box)]

    def _load(
        self, case: Case, origin: Sequence[int] | None, shape: Sequence[int] | None, mask: bool
    ) -> np.ndarray:
        if not mask:
            return self.shards.read(case.ref, origin, shape)
        labels = self.shards.read_mask(case.ref, origin, shape)
        if labels is None:
            raise CollectionError(f"{case.key}: has no mask: rebuild the task's cache")
        table = np.zeros(max(int(labels.max(initial=0)), *self.values) + 1, dtype=np.uint8)
        for output, value in enumerate(self.values, start=1):
            table[value] = output
        return table[labels]

    def _size(self, case: Case, mask: bool) -> int:
        voxels = int(np.prod(case.shape, dtype=np.int64))
        if mask:
            return voxels
        return voxels * int(case.meta["shape"][0]) * np.dtype(case.meta["dtype"]).itemsize

    def _keep(self, key: tuple[SampleRef, bool], array: np.ndarray) -> None:
        array.setflags(write=False)
        self._kept[key] = array
        self._bytes += array.nbytes
        while self._bytes > _KEPT_BYTES and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= dropped.nbytes

    def __getstate__(self) -> dict[str, Any]:
        # Loader processes start without the decoded cases and open the shards on their own.
        state = {name: getattr(self, name) for name in self.__slots__}
        return state | {"_kept": OrderedDict(), "_bytes": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


def prepare(
    record: TaskRecord,
    *,
    root: str | Path,
    cache: str | Path | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> TaskData:
    """Build (or find) the shards of a task and list its usable cases.

    Args:
        root: folder that the source's own `root` is relative to.
        cache: parent of the task caches; None: $XDG_CACHE_HOME/medloom/tasks.
        workers: processes that build the shards; 0: this one.

    Raises:
        CollectionError: missing folder, no usable case, a mask value that `structures` does not declare.
    """
    folder = Path(cache) if cache else default_cache()
    identity = json.dumps([record.source, str(Path(root).resolve())], sort_keys=True, default=str)
    collection = _collection(record, folder / "sources", identity, Path(root))
    name = hashlib.blake2b((identity + salt_fingerprint(collection.salt)).encode(), digest_size=6).hexdigest()
    shards_folder = folder / f"{record.name}-{name}"
    lock = folder / "sources" / f"{shards_folder.name}.lock"
    with alone(lock):  # a sweep of seeds starts several runs of a task together; the first one builds
        built = build(collection, shards_folder, workers=workers, progress=progress, keep_held_out=True)
    failures = [{"key": failure.key, "reason": failure.reason} for failure in built.failures]
    data = TaskData(Shards.open(shards_folder), [], failures, _ranks(collection))
    _list_cases(record, data)
    if not data.cases:
        reason = data.skipped[0]["reason"] if data.skipped else "the source is empty"
        raise CollectionError(f"task {record.name}: no usable case under {root}: {reason}")
    if data.skipped:
        first = data.skipped[0]
        logger.warning(
            "%s: %d cases left out, first %s: %s",
            record.name,
            len(data.skipped),
            first["key"],
            first["reason"],
        )
    if record.kind == "segmentation":
        with alone(lock):  # a build of another run sweeps away what is half written here
            _survey(record, data, shards_folder, progress)
    if record.kind == "detection":
        with alone(lock):
            survey(record, data, shards_folder, progress)
    return data


def default_cache() -> Path:
    """Parent of the task caches: $XDG_CACHE_HOME/medloom/tasks."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medloom" / "tasks"


def _collection(record: TaskRecord, folder: Path, identity: str, root: Path) -> Collection:
    """The one-source collection of a task, through a YAML in the cache: checked like any other."""
    if not root.is_dir():
        raise CollectionError(f"{root}: no such folder (root of task {record.name}); give --root FOLDER")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.name}-{hashlib.blake2b(identity.encode(), digest_size=6).hexdigest()}.yaml"
    source = dict(record.source)
    if record.kind == "classification":
        source.setdefault("classes", list(record.classes))
    values = {"name": record.name, "root": None, "salt": record.salt, "sources": [source]}
    write_text(path, to_yaml(values))
    return Collection.load(path, root=root)


def _ranks(collection: Collection) -> dict[str, int]:
    """Salted subject -> its position among the source's sorted subject names (see splits.py)."""
    found = scan(collection)
    subjects = sorted({(record.dataset, record.subject) for _, record in [*found.records, *found.held_out]})
    return {subject_key(collection.salt, *subject): index for index, subject in enumerate(subjects)}


def _list_cases(record: TaskRecord, data: TaskData) -> None:
    metas = [(ref, data.shards.meta(ref)) for ref in data.shards.refs()]
    if record.kind in WHOLE and record.kind != "regression" and not record.classes:
        _need_classes(record, [meta for _, meta in metas])
    listed = any(record.label in (meta.get("labels") or {}) for _, meta in metas)
    usable: list[tuple[SampleRef, dict[str, Any], tuple[float, ...]]] = []
    for ref, meta in metas:
        try:
            usable.append((ref, meta, _target(record, meta, listed)))
        except CollectionError as error:
            data.skipped.append({"key": meta["key"], "reason": str(error)})
    groups = strata(record, [target for _, _, target in usable])
    data.cases += [Case(*facts[:2], group, facts[2]) for facts, group in zip(usable, groups, strict=True)]
    data.cases.sort(key=lambda case: case.key)
    data.skipped.sort(key=lambda row: row["key"])


def _target(record: TaskRecord, meta: dict[str, Any], listed: bool) -> tuple[float, ...]:
    if record.kind in WHOLE:
        return read_target(record, meta.get("labels") or {}, listed=listed)
    needs_mask = record.kind != "detection" or record.boxes != "shapes"
    if needs_mask and not meta.get("mask"):
        raise CollectionError("has no mask")
    return ()


def _need_classes(record: TaskRecord, metas: Sequence[dict[str, Any]]) -> None:
    """Say which classes there are; the record fixes their order, so it must name them."""
    words = words_of(record, metas)
    listed = ", ".join(f"{word} ({count})" for word, count in words) or f"no label {record.label!r}"
    raise CollectionError(
        f"task {record.name}: classes: none are given; the source holds {listed}: "
        f"give task.classes=[{','.join(word for word, _ in words) or '...'}]"
        + (", the lowest grade first" if record.kind == "ordinal" else "")
    )


def _survey(record: TaskRecord, data: TaskData, folder: Path, progress: Progress | None) -> None:
    """Read every mask once: refuse undeclared values, remember where the structures lie (cached)."""
    data.values = sorted(record.structures)
    stamp = hashlib.blake2b(
        json.dumps([data.shards.manifest.hash, data.values, _LOCATIONS]).encode(), digest_size=6
    ).hexdigest()

    def places(case: Case, labels: np.ndarray) -> dict[str, np.ndarray]:
        unknown = [int(v) for v in np.unique(labels) if v and v not in data.values]
        if unknown:
            raise CollectionError(
                f"task {record.name}: the mask of {case.key} holds {unknown[0]}, which `structures` "
                f"({data.values}) does not declare: declare it, or map it with the source's mask_values"
            )
        found = {}
        for output, value in enumerate(data.values, start=1):
            voxels = np.argwhere(labels == value).astype(np.int32)
            if len(voxels):
                chosen = np.random.default_rng([output, len(voxels)]).permutation(len(voxels))
                found[f"{case.key}|{output}"] = voxels[np.sort(chosen[:_LOCATIONS])]
        return found

    for name, voxels in data.of_masks(folder / f"locations-{stamp}.npz", places, "masks", progress).items():
        key, _, output = name.rpartition("|")
        data.locations.setdefault(key, {})[int(output)] = voxels
