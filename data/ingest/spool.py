"""Encoded samples of one record, kept until all of it is known to be usable; on disk when large.

A record is stored whole or refused whole, and a slide has thousands of tiles: what is finished waits in a
temporary file without a name, so that memory holds one tile and not all of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from ..shards.format import Member

IN_MEMORY = 32 << 20  # bytes of a record that do not go to disk


class Spool:
    """Samples in, the same samples out, in order. A context manager; raises OSError when the disk is full."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115
        self._samples: list[tuple[dict[str, Any], list[tuple[str, int, int, int]]]] = []

    def __enter__(self) -> Spool:
        return self

    def put(self, meta: dict[str, Any], members: Sequence[Member]) -> None:
        """Keep a sample's metadata and encoded members."""
        for member in members:
            self._file.write(member.data)
        places = [(member.name, member.kind, member.level, len(member.data)) for member in members]
        self._samples.append((meta, places))

    def __iter__(self) -> Iterator[tuple[dict[str, Any], list[Member]]]:
        self._file.seek(0)
        for meta, places in self._samples:
            yield (
                meta,
                [Member(name, kind, level, self._file.read(size)) for name, kind, level, size in places],
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
