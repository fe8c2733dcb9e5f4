"""Whose a folder of shards is: bound to one build by `build.json`, locked while it works there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..atomic import sweep, write_json
from ..collection import Collection
from ..curate.curation import Curation
from ..errors import ShardError
from ..locks import locked
from ..privacy import salt_fingerprint
from ..shards.codec import check_profile
from ..shards.format import FORMAT_VERSION
from ..shards.writer import explain_os_errors
from .units import UNITS

BUILD = "build.json"


def identity_of(
    collection: Collection,
    shard_bytes: int,
    profile: str,
    keep_held_out: bool,
    curation: Curation | None = None,
) -> dict[str, Any]:
    """What a folder of shards is bound to by its first build. Raises ConfigError for an unknown profile."""
    return {
        "format": FORMAT_VERSION,
        "name": collection.name,
        "salt_fingerprint": salt_fingerprint(collection.salt),
        "shard_bytes": int(shard_bytes),
        "profile": check_profile(profile),
        "keep_held_out": bool(keep_held_out),
        "curation": None if curation is None else curation.digest,
    }


@contextlib.contextmanager
def claimed(out: Path, identity: dict[str, Any]) -> Iterator[None]:
    """Make `out` or check that it belongs to this build, lock it, and sweep what a killed build left."""
    with explain_os_errors(out, 0):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out, "another build is"):
        with explain_os_errors(out, 0):
            sweep(out)
            if not check_identity(out, identity):
                write_json(out / BUILD, identity)
            (out / UNITS).mkdir(exist_ok=True)
            sweep(out / UNITS)
        yield


def check_identity(out: Path, identity: dict[str, Any]) -> bool:
    """Whether `out` is bound to this build already; False: it is empty, or does not exist.

    Raises:
        ShardError: it holds something else, or was built from something else, or otherwise.
    """
    path = out / BUILD
    if not path.exists():
        if out.is_dir() and any(out.iterdir()):
            raise ShardError(f"{out}: holds other files and no shards; choose an empty or a new folder")
        return False
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ShardError(f"{path}: not readable ({error}); build into another folder") from error
    for name, value in identity.items():
        if known.get(name) != value:
            raise ShardError(
                f"{out}: was built with {name} {known.get(name)!r}, now it is {value!r}; "
                "build into another folder, or delete this one"
            )
    return True
