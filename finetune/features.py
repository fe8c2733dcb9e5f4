"""A cache of frozen features on disk: what an encoder says of a case is computed once for all probes.

An entry belongs to the encoder's weights and section, the manifest of the task's shards, the grid of the
plan, the kind of device and the name of what was taken (a summary, blocks, tokens); never to a split, a seed
or a share of the labels. Cases are added as they are asked for, in parts of at most 64 MB, so that a killed
run loses one part. Values are float32 as they were computed, so that a score with the cache is the score
without, to rounding. The price is disk: 2 x E x 4 bytes a case for a summary; beyond the bound the entries
that were used longest ago go, and what could never fit is computed and not kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from ..data.atomic import replacing, write_json
from ..data.config import to_dict
from ..data.locks import alone

if TYPE_CHECKING:
    from .data import Case
    from .tasks.base import Task

logger = logging.getLogger(__name__)

Compute = Callable[[Sequence["Case"]], np.ndarray]  # cases -> float32 [N, ...]
_PART_BYTES = 64 << 20


def frozen(
    task: Task, name: str, encoder: nn.Module, cases: Sequence[Case], device: str, compute: Compute
) -> np.ndarray:
    """Rows [N, ...] of `cases`, from the cache of `config.features` where there is one.

    Args:
        name: of what `compute` takes from the encoder; rows of one name and encoder have one shape.
        device: its type; bf16 of an accelerator and float32 of a CPU are different features.
        compute: called with the cases that are not there yet, at most 64 MB of rows at a time.
    """
    folder = task.config.features
    if folder is None or task.corrupt is not None or not cases:
        return compute(cases)
    key = entry_name(task, name, encoder, device)
    return FeatureCache(Path(folder), task.config.features_gib).rows(key, cases, compute)


def entry_name(task: Task, name: str, encoder: nn.Module, device: str) -> str:
    """Name of the entry: everything that a row depends on, beside the case."""
    plan = task.plan
    facts = [weights_hash(encoder), task.data.shards.manifest.hash, plan.ndim, plan.channels, plan.patch,
             plan.resize, plan.spacing, device]  # fmt: skip
    digest = hashlib.blake2b(json.dumps(facts, default=str).encode(), digest_size=10).hexdigest()
    return f"{task.record.name}-{name}-{digest}"


def weights_hash(encoder: nn.Module) -> str:
    """Hash of an encoder's section, tensors and buffers; about a second a gigabyte."""
    import torch

    section = to_dict(encoder.config) if hasattr(encoder, "config") else {}
    section.pop("pretrained", None)  # the same network, whether its weights came by name or from a file
    digest = hashlib.blake2b(json.dumps(section, sort_keys=True, default=str).encode(), digest_size=16)
    for key, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


class FeatureCache:
    """Entries under one folder, together at most `most_gib`; several processes may share it."""

    def __init__(self, folder: Path, most_gib: float) -> None:
        self.folder = folder
        self.most = int(most_gib * 2**30)

    def rows(self, name: str, cases: Sequence[Case], compute: Compute) -> np.ndarray:
        """Rows of the cases in their order; the missing ones are computed by one process at a time."""
        entry = self.folder / name
        found = self._read(entry, cases)
        if found is not None:
            return found
        entry.mkdir(parents=True, exist_ok=True)
        with alone(self.folder / f"{name}.lock"):
            known = _index(entry)
            missing = [case for case in cases if case.key not in known]
            if missing and not self._fill(entry, len(known), missing, compute):
                return compute(cases)
        found = self._read(entry, cases)
        if found is None:  # another process made room meanwhile
            return compute(cases)
        self._make_room(entry)
        return found

    def _fill(self, entry: Path, known: int, missing: Sequence[Case], compute: Compute) -> bool:
        """Compute and write the missing rows part by part; False when it is too much to be kept."""
        first = compute(missing[:1])
        each = max(1, first.size * 4)
        if each * (known + len(missing)) > self.most:
            needed, bound = each * (known + len(missing)) / 2**30, self.most / 2**30
            logger.warning(
                "%s: %.1f GiB are more than features_gib=%.1f: not kept", entry.name, needed, bound
            )
            return False
        size = max(1, _PART_BYTES // each)
        for start in range(0, len(missing), size):
            part = missing[start : start + size]
            _write(entry, [case.key for case in part], np.asarray(compute(part), dtype=np.float32))
        return True

    def _read(self, entry: Path, cases: Sequence[Case]) -> np.ndarray | None:
        """Rows of all cases, or None when one is not there."""
        index = _index(entry)
        if not cases or any(case.key not in index for case in cases):
            return None
        places: dict[str, list[tuple[int, int]]] = {}
        for position, case in enumerate(cases):
            part, row = index[case.key]
            places.setdefault(part, []).append((position, row))
        result: np.ndarray | None = None
        try:
            for part, pairs in places.items():
                stored = np.load(entry / f"{part}.npy", mmap_mode="r", allow_pickle=False)
                if result is None:
                    result = np.empty((len(cases), *stored.shape[1:]), dtype=np.float32)
                positions, rows = np.array(pairs).T
                result[positions] = stored[rows]
            os.utime(entry)
        except (OSError, ValueError, IndexError) as error:  # removed by another process, or damaged
            logger.warning("%s: a part of the cached features cannot be read (%s): computed again",
                           entry.name, type(error).__name__)  # fmt: skip
            shutil.rmtree(entry, ignore_errors=True)
            entry.mkdir(parents=True, exist_ok=True)
            return None
        return result

    def _make_room(self, own: Path) -> None:
        """Remove the entries that were used longest ago until the folder is within its bound."""
        sizes = {entry: _bytes(entry) for entry in self.folder.iterdir() if entry.is_dir()}
        total = sum(sizes.values())
        for entry in sorted(sizes, key=_used):
            if total <= self.most:
                return
            if entry != own:
                shutil.rmtree(entry, ignore_errors=True)
                total -= sizes[entry]
                logger.info("%s: features removed to stay below %.1f GiB", entry.name, self.most / 2**30)


def _index(entry: Path) -> dict[str, tuple[str, int]]:
    """Case key -> (part, row) of what an entry holds; a part counts from when its list is written."""
    found: dict[str, tuple[str, int]] = {}
    for path in sorted(entry.glob("part-*.json")) if entry.is_dir() else []:
        try:
            keys: Any = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        found.update({key: (path.stem, row) for row, key in enumerate(keys)})
    return found


def _write(entry: Path, keys: Sequence[str], values: np.ndarray) -> None:
    entry.mkdir(parents=True, exist_ok=True)
    name = f"part-{hashlib.blake2b(json.dumps(list(keys)).encode(), digest_size=8).hexdigest()}"
    with replacing(entry / f"{name}.npy") as temporary, temporary.open("wb") as file:
        np.save(file, values, allow_pickle=False)
    write_json(entry / f"{name}.json", list(keys))


def _bytes(entry: Path) -> int:
    try:
        return sum(path.stat().st_size for path in entry.iterdir())
    except OSError:
        return 0


def _used(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except OSError:
        return 0.0
