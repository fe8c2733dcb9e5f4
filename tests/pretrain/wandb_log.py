"""Reads the `.wandb` files of W&B: a 7-byte header, then LevelDB log blocks of protobuf messages."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768


def records(path: Path) -> Iterator[Any]:
    """Records of a `.wandb` file."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert struct.unpack("<4sHB", data[:7]) == (b":W&B", 0xBEE1, 0)
    at, pending = 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        pending += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(pending)
            yield record
            pending = b""


def history(path: Path) -> list[dict[str, Any]]:
    """Logged rows of a `.wandb` file."""
    rows = []
    for record in records(path):
        if record.HasField("history"):
            items = record.history.item
            rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    return rows


def files(run: Path) -> list[Path]:
    """The `.wandb` files of a run folder, in the order of its segments, once W&B has closed them."""
    import wandb

    wandb.teardown()  # its own process writes the last block after `finish` has returned
    return sorted((run / "wandb").glob("*run-*/*.wandb"))
