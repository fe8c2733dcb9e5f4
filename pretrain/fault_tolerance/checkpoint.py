"""Checkpoint files that survive a kill at any instruction: written, read back, and only then renamed.

A checkpoint is hashed while it is written under a temporary name, fsynced, read back from the disk and
compared; `checkpoints.json` learns its SHA-256, `last.ckpt` becomes `previous.ckpt` (a hard link) and the new
file takes its place. At every moment at least one complete file exists. A reader computes the SHA-256 again:
a truncated or flipped file falls back to the one before, with a warning. A file of a folder without
`checkpoints.json` is judged by the CRC of its records (torch itself checks neither). The price is twice the
disk space, one more read of the file at each save, and one at a resume.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from ...data.atomic import replacing, write_json
from ...data.errors import CheckpointError
from ..artefact import sha256

log = logging.getLogger(__name__)

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
STEPS = "step-*.ckpt"
WRITTEN = "checkpoints.json"
SPLIT = "split"  # folder of the checkpoints in parts (scale/split.py)
SUMS = "sums.json"  # of such a checkpoint: the SHA-256 of its files
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)  # what link(2) says where there are none


@dataclass(frozen=True)
class Stored:
    """A checkpoint that was written and read back."""

    step: int
    bytes: int
    seconds: float  # writing, fsync and reading back
    sha256: str


def store(
    state: dict[str, Any], folder: Path, step: int, *, keep_every: int | None = None, keep_last: int = 2
) -> Stored:
    """Write `state` as last.ckpt, keeping the one before as previous.ckpt; one process calls it.

    Args:
        state: tensors in host memory and plain values, as `saving.snapshot` gives them.
        keep_every: multiples of this step stay for good as step-N.ckpt; None: none does.
        keep_last: newest checkpoints that stay, last.ckpt and previous.ckpt among them.

    Raises:
        CheckpointError: the disk is full, the folder cannot be written, or the disk gives back other bytes;
            last.ckpt is still the old one.
    """
    last, begin = folder / LAST, time.monotonic()
    try:
        with replacing(last) as temporary:
            digest, size = write(state, temporary)
            stored = Stored(step, size, round(time.monotonic() - begin, 3), digest)
            _remember(folder, stored)
            if last.exists():
                _link(last, folder / PREVIOUS, otherwise=Path.replace)
        _retain(folder, step, keep_every, keep_last)
    except OSError as error:
        raise CheckpointError(f"{last}: cannot be written ({error}): free space, then resume=true") from error
    return stored


def write(state: dict[str, Any], path: Path) -> tuple[str, int]:
    """torch.save to `path`, fsync, read back; returns (SHA-256, bytes).

    Raises:
        OSError: not written, or the disk gives back something else.
    """
    import torch

    with path.open("wb") as file:
        stream = _Hashing(file)
        try:
            torch.save(state, cast(BinaryIO, stream))
            file.flush()
            os.fsync(file.fileno())
        except RuntimeError as error:  # torch hides what the stream has raised
            raise stream.error or OSError(str(error).splitlines()[0]) from error
        if hasattr(os, "posix_fadvise"):  # forget the pages: what is read back is what the disk has
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if sha256(path) != stream.sha256.hexdigest():
        raise OSError("what was read back differs from what was written: is the disk faulty?")
    return stream.sha256.hexdigest(), stream.size


class _Hashing:
    """A file that hashes what is written. Each call is short, so that training goes on beside it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256, self.size = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.sha256.update(data)
        self.size += written
        return written

    def flush(self) -> None:
        self.file.flush()


def fault(path: Path) -> str | None:
    """Why `path` is no complete checkpoint; None when it is one. Reads the whole file."""
    if not path.is_file():
        return "missing"
    try:
        known = {stored.sha256 for stored in history(path.parent)}
        if known:
            return None if sha256(path) in known else "its SHA-256 is none of those that were written"
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError) as error:
        return f"not readable ({error})"
    return f"checksum of {broken} is wrong" if broken else None


def newest(folder: Path) -> Path | None:
    """The checkpoint to resume from: last.ckpt, else an older one with a warning; None when there is none.

    Raises:
        CheckpointError: there are checkpoints, but none is complete.
    """
    faults: list[str] = []
    for path in _candidates(folder):
        reason = fault(path)
        if reason is None:
            if faults:
                log.warning("%s; resuming from %s", "; ".join(faults), path)
            return path
        if reason != "missing" or faults:
            faults.append(f"{path}: {reason}")
    if not faults:
        return None
    raise CheckpointError(
        f"{'; '.join(faults)}: no checkpoint is usable; start again in another folder (out=...)"
    )


def history(folder: Path) -> list[Stored]:
    """The checkpoints that `folder` may hold, the oldest first; empty where nothing was noted."""
    try:
        return [Stored(**entry) for entry in json.loads((folder / WRITTEN).read_text())]
    except (FileNotFoundError, ValueError, TypeError):
        return []


def kept(folder: Path) -> dict[int, Path]:
    """step -> file of the copies that `trainer.keep_every_steps` and `keep_last` made, the newest first."""
    steps = {int(path.stem.partition("-")[2]): path for path in folder.glob(STEPS)}
    return dict(sorted(steps.items(), reverse=True))


def in_parts(folder: Path) -> dict[int, Path]:
    """step -> folder of the checkpoints in parts (`trainer.checkpoint_split`), the newest first."""
    found = {int(path.name.partition("-")[2]): path for path in (folder / SPLIT).glob("step-*")
             if path.is_dir()}  # fmt: skip
    return dict(sorted(found.items(), reverse=True))


def _candidates(folder: Path) -> Iterator[Path]:
    yield folder / LAST
    yield folder / PREVIOUS
    yield from kept(folder).values()


def _remember(folder: Path, stored: Stored) -> None:
    """Note a file before it gets its name: whatever has the name of a checkpoint is noted."""
    steps = kept(folder)
    before = [entry for entry in history(folder) if entry.sha256 != stored.sha256]
    recent = before[-4:]  # last.ckpt and previous.ckpt, even if a file was noted that got no name
    older = [entry for entry in before if entry.step in steps and entry not in recent]
    write_json(folder / WRITTEN, [asdict(entry) for entry in (*older, *recent, stored)])


def _link(existing: Path, name: Path, otherwise: Callable[[Path, Path], Any]) -> None:
    """Give a file another name, atomically; `otherwise` does it where there are no hard links."""
    with replacing(name) as link:
        try:
            os.link(existing, link)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            otherwise(existing, link)


def _retain(folder: Path, step: int, keep_every: int | None, keep_last: int) -> None:
    """Keep the copy of this step where it is wanted, drop those that no longer are."""

    def for_good(number: int) -> bool:
        return keep_every is not None and number % keep_every == 0

    if for_good(step) or keep_last > 2:
        _link(folder / LAST, folder / f"step-{step}.ckpt", otherwise=shutil.copyfile)
    copies = kept(folder)
    recent = list(copies)[:keep_last] if keep_last > 2 else []
    for path in (path for number, path in copies.items() if number not in recent and not for_good(number)):
        path.unlink(missing_ok=True)
