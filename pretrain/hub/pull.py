"""Fetching an encoder ahead of its use, into the cache or as plain files into a folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.atomic import replacing
from ...data.errors import CheckpointError
from .errors import full
from .fetch import ENCODER, commit_of
from .resolve import located, name_of, near_release


@dataclass(frozen=True, slots=True)
class Pulled:
    """What is on this disk now."""

    pinned: str  # a name that stands for exactly these files
    folder: Path
    bytes: int


def pull(text: str, to: Path | None = None) -> Pulled:
    """Fetch an encoder by its name.

    Args:
        text: of the registry, or hf-hub:ORG/NAME[@REVISION].
        to: a folder that gets copies of the files; the same files may be there already.

    Raises:
        CheckpointError: see `fetch`; an unknown name; `to` holds something else, or cannot be written.
    """
    folder = located(text, weights=True)
    if folder is None:
        hint = near_release(text)
        raise CheckpointError(
            f"{text}: no released encoder{hint or '; `medloom weights list` shows them all'}"
        )
    hub = name_of(text)
    named = hub is not None and hub.release is None
    pinned = f"hf-hub:{hub.repo}@{commit_of(folder)}" if hub is not None and named else text
    files = [folder / name for name in ENCODER if (folder / name).is_file()]
    if to is not None:
        folder = Path(to)
        _refuse_others(folder, {path.name for path in files}, text)
        copied(files, folder)
    return Pulled(pinned, folder, sum((folder / path.name).stat().st_size for path in files))


def _refuse_others(to: Path, names: set[str], text: str) -> None:
    """Raises CheckpointError where a folder holds other files than these."""
    others = [entry.name for entry in to.iterdir() if entry.name not in names] if to.is_dir() else []
    if others:
        raise CheckpointError(
            f"{to}: holds other files ({sorted(others)[0]}): choose an empty folder for {text}"
        )


def copied(files: Sequence[Path], to: Path) -> None:
    """Copy files into `to` as plain files, each whole or not there.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        to.mkdir(parents=True, exist_ok=True)
        for path in files:
            with replacing(to / path.name) as temporary:
                shutil.copyfile(path, temporary)
    except OSError as error:
        mend = "free space, or choose another folder" if full(error) else "choose another folder"
        raise CheckpointError(f"{to}: cannot be written ({error.strerror or error}): {mend}") from error
