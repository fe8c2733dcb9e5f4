"""From the manifest to the leaderboard: what each run read and made, as artifacts that name themselves.

An artifact is named by what it is and the beginning of its SHA-256, and says its facts and no more: the
encoder of a pretraining run is the same artifact when a fine-tuning run reads it a year later, in another
project or offline. No path, sample key or salt is in the facts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.shards.manifest import Manifest, SourceEntry
from .base import Artifact
from .privacy import public

DIGITS = 12  # of a hash in a name


def shards(manifest: Manifest, sources: Sequence[SourceEntry] | None = None) -> Artifact:
    """The shards that a run reads: of `sources`, or of all that the manifest holds."""
    chosen = manifest.sources if sources is None else sources
    facts = {
        "manifest": manifest.hash,
        "collection": manifest.name,
        "sources": [{"id": s.id, "dataset": s.dataset, "licence": s.licence, "count": s.count}
                    for s in chosen],
    }  # fmt: skip
    return Artifact("dataset", f"shards-{manifest.hash[:DIGITS]}", facts)


def encoder(record: Mapping[str, Any], files: Sequence[Path] = ()) -> Artifact:
    """An encoder, from its encoder.json; of one without (timm, hubs) the name of its source."""
    said = record.get("training")
    training = said if isinstance(said, Mapping) else {}
    facts = {
        "sha256": record.get("sha256"),
        "source": record.get("source"),
        "architecture": record.get("architecture"),
        "parameters": record.get("parameters"),
        "manifest": training.get("manifest"),
        "objective": (training.get("objective") or {}).get("name"),
        "steps": training.get("steps"),
        "samples": training.get("samples"),
        "init_from": training.get("init_from"),
    }
    known = public({key: value for key, value in facts.items() if value is not None})
    name = str(record.get("sha256") or "")[:DIGITS] or known.get("source") or "unknown"
    return Artifact("encoder", named("encoder", str(name)), known, tuple(files))


def named(*parts: str) -> str:
    """A name that every tracker takes: letters, digits, dash, dot and underscore."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts)).strip("-")[:120]
