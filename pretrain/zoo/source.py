"""`zoo:NAME`: the encoder of a record, as `sources.read_source` gives every other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ..state_file import read_state, tensors_in
from .download import fetched
from .mapping import mapped
from .record import PREFIX, ZooRecord, load_record


def read_zoo(
    name: str, file: Path | None, *, weights: bool
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """(encoder section, tensors by artefact name, what a record says); no download without `weights`.

    Args:
        file: the weights, where they are on this disk already; in the format in which they are published.

    Raises:
        CheckpointError: no such record, no file, or a file of something else.
    """
    record = load_record(name)
    if record.download.timm and file is None:
        from ..sources import from_timm

        section, tensors, _ = from_timm(record.download.timm, weights)
        return section, tensors, described(record)
    if not weights:
        return dict(record.encoder) or _timm_section(record), {}, described(record)
    path = fetched(record) if file is None else _inside(file, record)
    tensors = tensors_in(read_state(path), record.mapping.inside, str(path))
    return dict(record.encoder) or _timm_section(record), mapped(record, tensors), described(record)


def described(record: ZooRecord) -> dict[str, Any]:
    """What is known of the encoder, under the keys of encoder.json."""
    training = {
        "sources": [
            {"id": name, "dataset": name, "count": None, "licence": None} for name in record.trained_on
        ],
        "complete": False,
    }
    return {
        "source": f"{PREFIX}{record.name}",
        "title": record.title,
        "licence": record.licence,
        "input": {"rule": record.intensity or "its own", **record.input},
        "training": training,
    }


def _inside(path: Path, record: ZooRecord) -> Path:
    """The record's file in a folder that `medloom weights pull --to` filled."""
    return path / Path(record.download.file or "").name if path.is_dir() else path


def _timm_section(record: ZooRecord) -> dict[str, Any]:
    from ..sources import from_timm

    return from_timm(str(record.download.timm), False)[0]
