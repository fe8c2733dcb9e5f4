"""Catalogue, readers, shards and streams. Knows nothing of training.

Public: `open_shards`. Axis letters everywhere: B batch, C channel, D H W depth/height/width (slice first),
N tokens, E embedding. World space is RAS+ millimetres.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from .shards.reader import Shards

__all__ = ["open_shards"]


def open_shards(path: str | Path) -> Shards:
    """Open a folder of shards for reading: `manifest`, `refs()`, `meta()`, `read()`, `read_mask()`.

    Args:
        path: a path, or a URL (s3://, https://, ...; options: `medloom.data.remote.shards`).

    Raises:
        ShardError: the folder has no manifest, or the manifest is of another format version.
        ConfigError, StoreError: the store behind a URL cannot be opened or read.
    """
    from .shards.reader import Shards

    return Shards.open(path)
