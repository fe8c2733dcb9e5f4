"""SHA-256 of files whose digest nobody publishes: noted when first fetched, expected ever after.

Notes lie in `$XDG_CONFIG_HOME/medloom/fetched/`, one file each, apart from the data: a file that is fetched
again to another disk, or after the first was deleted, still has to be the same.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from pathlib import Path

from ..atomic import write_json
from .download import Digests, Expected
from .licence import home
from .plan import Part

_BLOCK = 1 << 20


def expected(identifier: str, part: Part, *, changed: bool = False) -> Expected:
    """What the file should be.

    Args:
        changed: the user says that a new version is meant: forget the noted one.
    """
    if part.md5:
        return Expected(md5=part.md5)
    try:
        known = json.loads(_path(identifier, part).read_text(encoding="utf-8"))
        sha256, date = str(known["sha256"]), str(known["date"])
    except (OSError, ValueError, TypeError, KeyError):
        return Expected()
    if changed:
        return Expected()
    return Expected(
        sha256=sha256,
        says=f"the first fetch of {date}",
        mend="if a new version is meant, run again with --accept-changed",
    )


def note(identifier: str, part: Part, found: Digests) -> None:
    """Remember a file whose digest the catalogue does not know."""
    path = _path(identifier, part)
    if part.md5 or expected(identifier, part).sha256 == found.sha256:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    write_json(path, {"sha256": found.sha256, "bytes": found.bytes, "date": today})


def digests_of(path: Path) -> Digests:
    """Digests of a file on this disk, about 2 s a GB."""
    md5, sha256, size = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    with path.open("rb") as file:
        while data := file.read(_BLOCK):
            md5.update(data)
            sha256.update(data)
            size += len(data)
    return Digests(size, md5.hexdigest(), sha256.hexdigest())


def _path(identifier: str, part: Part) -> Path:
    return home() / "fetched" / f"{identifier}-{part.name}.json"
