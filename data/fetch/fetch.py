"""`fetch`: one dataset onto this disk, from nothing or from wherever a killed run left it, to a collection.

    TO/ID/                       locked while a process works in it; a second one waits, then finds all done
      Task09_Spleen/             unpacked, with a hidden marker that says from what, and how much it is
      pathmnist.npz              a file that is data itself, with a hidden note of its digest beside it
      Task09_Spleen.tar.part     a download under way or cut
      collection.yaml            ready for `medloom shards build`

Every step leaves either its whole result under its name or something that the next run continues or removes,
so a run that is repeated does only what is missing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..atomic import replacing, sweep, write_json
from ..errors import CollectionError, ConfigError, ShardError, StoreError
from ..locks import locked
from ..remote.stores import Patience, public
from . import digests, recognise
from .download import Digests, Progress, download
from .extract import MARKER, Contents, extract, kind_of
from .plan import Part, Plan

log = logging.getLogger(__name__)

_UNPACKED = 2.0  # bytes of disk for each byte of an archive while it is unpacked; checked again before that
_POLL = 0.5  # seconds between two looks at a folder that another process works in


@dataclass(frozen=True, slots=True)
class Options:
    """How to fetch."""

    keep_archives: bool = False
    accept_changed: bool = False  # a file that is not the one of the first fetch is meant
    patience: Patience | None = None
    command: str = "medloom data fetch"  # for the head of the YAML


@dataclass(frozen=True, slots=True)
class Fetched:
    """What lies there now."""

    folder: Path
    collection: Path | None  # None: no layout was recognised
    images: int = 0
    refused: int = 0
    reason: str = ""  # why there is no collection
    kept: bool = False  # the collection was there, and was left as it is


def fetch(plan: Plan, to: Path, options: Options | None = None, progress: Progress | None = None) -> Fetched:
    """Fetch, verify, unpack and describe a dataset.

    Args:
        plan: with parts; see `plan.plan`.
        to: the user's folder of datasets; this one lies in `to/ID`.

    Raises:
        StoreError: a file cannot be fetched, is another than expected, or has no room.
        ReadError: an archive is damaged or refused.
        CollectionError: the Decathlon's or MedMNIST's own layout does not find the images.
        ConfigError: a folder in the way, or one that cannot be written.
    """
    options = options or Options()
    if not plan.parts:
        raise ConfigError(f"{plan.dataset.id}: cannot be fetched, {plan.reason}")
    folder = to.expanduser().absolute() / plan.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror}); choose another with --to") from error
    with _alone(folder):
        sweep_files(folder)
        places = [_ensure(plan, part, folder, options, progress) for part in plan.parts]
        return _describe(plan, folder, places, options)


def sweep_files(folder: Path) -> None:
    """Remove what killed runs left, but for downloads, which go on."""
    for path in folder.glob(".partial-*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
    sweep(folder)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, waiting for it."""
    with contextlib.ExitStack() as stack:
        waited = False
        while True:
            try:
                stack.enter_context(locked(folder, "another fetch is"))
                break
            except ShardError:
                if not waited:
                    log.info("%s: another process fetches into this folder; waiting for it", folder)
                waited = True
                time.sleep(_POLL)
        yield


def _ensure(plan: Plan, part: Part, folder: Path, options: Options, progress: Progress | None) -> Path:
    """The part as it is used: a folder, or a file that is data itself. Does only what is missing."""
    if part.given is not None and part.given.is_dir():
        return part.given
    archive, unpacked = folder / part.name, folder / part.folder
    if unpacked.is_dir() and _is_whole(part, unpacked):
        if not options.keep_archives and _note_of(archive).exists():
            _remove(archive)
        return unpacked
    if unpacked.exists() and part.archive:
        raise ConfigError(f"{unpacked}: is in the way and was not unpacked by medloom; move it elsewhere")
    source = part.given or archive
    if part.given is not None:
        found = _verified(plan, part, part.given, options)
    elif not archive.exists():
        room = _UNPACKED if part.archive else 1.0
        expected = digests.expected(plan.dataset.id, part, changed=options.accept_changed)
        found = download(part.url, archive, expected, room=room, patience=options.patience, progress=progress)
        _note(archive, part, found)
    elif _unchanged(archive, part):
        found = None
    else:
        found = _verified(plan, part, archive, options)
        _note(archive, part, found)
    if found is not None:
        digests.note(plan.dataset.id, part, found)
    if kind_of(source) is None:
        return _placed(source, archive)
    marker = {
        "url": public(part.url),
        "name": part.name,
        "sha256": found.sha256 if found else _noted(archive),
    }
    extract(source, unpacked, marker, progress)
    if part.given is None and not options.keep_archives:
        _remove(archive)
    return unpacked


def _is_whole(part: Part, unpacked: Path) -> bool:
    """Whether the folder holds what was unpacked into it. Raises ConfigError when it does not any more."""
    try:
        marker = json.loads((unpacked / MARKER).read_text(encoding="utf-8"))
        contents = Contents(marker["files"], marker["bytes"])
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        contents = Contents(-1, -1)
    if not contents.lie_in(unpacked):
        raise ConfigError(
            f"{unpacked}: is not as {part.name} was unpacked ({contents.files:,} files of {contents.bytes:,} "
            "bytes); remove it to fetch it again"
        )
    log.info("%s: is there already, %s files", unpacked, f"{contents.files:,}")
    return True


def _verified(plan: Plan, part: Part, path: Path, options: Options) -> Digests:
    """Digests of a file that is there. Raises StoreError when it is another than expected."""
    expected = digests.expected(plan.dataset.id, part, changed=options.accept_changed)
    found = digests.digests_of(path)
    if fault := expected.fault(found):
        raise StoreError(
            f"{path}: {fault}; it is another or a damaged file: move it away, or {expected.mend}"
        )
    return found


def _placed(source: Path, target: Path) -> Path:
    """A data file in the dataset's folder; the user's own is copied."""
    if source != target and not target.exists():
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
    return target


def _note(path: Path, part: Part, found: Digests) -> None:
    """Write beside a verified file what it is, so that the next run need not read it."""
    state = path.stat()
    write_json(
        _note_of(path),
        {
            "url": public(part.url),
            "bytes": state.st_size,
            "mtime_ns": state.st_mtime_ns,
            "md5": found.md5,
            "sha256": found.sha256,
        },
    )


def _unchanged(path: Path, part: Part) -> bool:
    """Whether the file is the one that was verified, by size and time, and the one that is wanted."""
    try:
        known = json.loads(_note_of(path).read_text(encoding="utf-8"))
        state = path.stat()
        same = (known["bytes"], known["mtime_ns"]) == (state.st_size, state.st_mtime_ns)
        return same and part.md5 in (None, known["md5"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _noted(path: Path) -> str:
    return str(json.loads(_note_of(path).read_text(encoding="utf-8"))["sha256"])


def _note_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.json")


def _remove(archive: Path) -> None:
    archive.unlink(missing_ok=True)
    _note_of(archive).unlink(missing_ok=True)


def _describe(plan: Plan, folder: Path, places: list[Path], options: Options) -> Fetched:
    """Write the collection, unless the user has one there, and look what it finds."""
    path = folder / "collection.yaml"
    if path.exists():
        images, refused = recognise.count(path)
        return Fetched(folder, path, images, refused, kept=True)
    base = places[0] if len(places) == 1 and places[0].is_dir() else folder
    reason = "no layout was recognised"
    for guess in _guesses(plan, base, places[0]):
        written = recognise.write(folder, plan.folder, plan.dataset, guess, options.command)
        try:
            images, refused = recognise.count(written)
            return Fetched(folder, written, images, refused)
        except (CollectionError, ConfigError) as error:
            written.unlink()
            if plan.layout is not None:
                raise
            reason = str(error)
    return Fetched(folder, None, reason=reason)


def _guesses(plan: Plan, base: Path, first: Path) -> Iterator[recognise.Guess]:
    if plan.layout == "msd":
        roots = sorted(base.rglob("dataset.json"))  # a folder that the user has may lie around it
        yield recognise.Guess("msd", roots[0].parent if roots else base)
    elif plan.layout == "medmnist":
        options = {"subset": plan.dataset.id, "size": plan.size}
        rule = f"{{dataset: {plan.dataset.id}, splits: [test]}}"
        note = f"To evaluate on it, keep its test split out of the shards: held_out: [{rule}]"
        root = first if first.is_dir() else first.parent
        yield recognise.Guess("medmnist", root, options, notes=[note])
    else:
        yield from recognise.guesses(base)
