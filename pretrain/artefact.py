"""The files of an encoder artefact and its record, without loading torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..data.errors import CheckpointError

FORMAT = 1
WEIGHTS, RECORD, TIMM_CONFIG = "encoder.safetensors", "encoder.json", "config.json"
TIMM_WEIGHTS = "model.safetensors"
CARD = "README.md"
MODELING = "modeling.py"  # the network without medloom, where timm does not build it
REFERENCE = "reference.npz"  # features of a generated image, which prove that loading went right


def read_record(path: Path) -> dict[str, Any]:
    """encoder.json as a dict.

    Raises:
        CheckpointError: missing, not JSON, or of a format that this version does not know.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path}: missing; weights can only be loaded with the record that describes them"
        )
    try:
        record = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{path}: not readable as JSON ({error}): fetch or export the encoder again"
        ) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or "architecture" not in record:
        found = record.get("format") if isinstance(record, dict) else None
        raise CheckpointError(f"{path}: format {found!r}, this version reads {FORMAT}: update medloom")
    return record


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits; about a second a gigabyte."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(path: Path) -> dict[str, Any]:
    """Size in bytes and sha256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def generations(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """encoder.json, then what it keeps of the one that its weights started from, and so on.

    Each has `training` (None: not on record) and `held_out`.
    """
    one: Mapping[str, Any] | None = record
    while one is not None:
        yield one
        one = (one.get("training") or {}).get("ancestor") or None
