"""Terms of a dataset, shown and accepted once by the person who fetches it, and remembered.

Acceptances lie in `$XDG_CONFIG_HOME/medloom/accepted/ID.json`, one file each, so that two processes cannot
lose each other's. One counts for the licence that was shown: when the catalogue learns another, it is asked
again. The catalogue's word is not the licence: the page is named beside it.
"""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

from ..atomic import write_json
from ..catalog import Dataset
from ..catalog.licences import terms
from ..errors import ConfigError


def notice(dataset: Dataset) -> list[str]:
    """What to show before anything is fetched, in lines."""
    lines = [f"{dataset.name} ({dataset.id})"]
    if dataset.licence:
        lines.append(f"licence: {dataset.licence} ({terms(dataset.licence).words})")
    else:
        lines.append("licence: unknown to the catalogue; read the page below before you use it")
    if dataset.homepage:
        lines.append(f"page: {dataset.homepage}")
    if dataset.paper:
        lines.append(f"cite: {dataset.paper}")
    return lines


def is_accepted(dataset: Dataset) -> bool:
    """Whether this user has accepted this licence of this dataset before."""
    try:
        known = json.loads(_path(dataset).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(known, dict) and known.get("licence") == dataset.licence


def accept(dataset: Dataset, how: str) -> None:
    """Remember that it was accepted, and how (typed, or by an option). Raises ConfigError."""
    path = _path(dataset)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            path,
            {
                "dataset": dataset.id,
                "licence": dataset.licence,
                "page": dataset.homepage,
                "accepted": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "how": how,
            },
        )
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot remember the licence ({error.strerror}); set XDG_CONFIG_HOME to your own folder"
        ) from error


def home() -> Path:
    """Where this user's acceptances and digests lie."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "medloom"


def _path(dataset: Dataset) -> Path:
    return home() / "accepted" / f"{dataset.id}.json"
