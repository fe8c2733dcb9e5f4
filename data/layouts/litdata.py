"""Folders that `litdata.optimize` wrote: index.json and chunk-*.bin; litdata itself is not needed.

Leaves that hold pictures or arrays become images, leaves that say "mask" their masks; numbers and texts are
fields that the options may name. Every item's sizes and numbers are read at a scan, about 20 us an item.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import CollectionError, ReadError
from ..interop import archive
from ..interop.litdata import Chunk, layout_of
from ..sample import Record
from .base import Progress, Refusal, Source, as_it_is, counted, subject_pattern
from .members import Converter, Group, MemberOptions


@dataclass
class Options(MemberOptions):
    """Keys of `options` in a source of layout litdata; names of leaves are dotted."""


describe = as_it_is  # an index says nothing of modality or classes


def scan(
    root: Path, source: Source, options: Options, progress: Progress | None = None
) -> Iterator[Record | Refusal]:
    """Yield a Record per image in the chunks.

    Raises:
        CollectionError: no index.json, a chunk's name leads out of the folder, or the chunks are of a kind
            that is not read.
        ConfigError: `subject_pattern` is not a pattern with one group.
    """
    layout = layout_of(root)
    converter = Converter(source, options, subject_pattern(options.subject_pattern))
    for name in counted(sorted(layout.chunks), source.dataset, progress):
        path = root / name
        if path.parent != root:
            raise CollectionError(f"{root / 'index.json'}: chunk {name!r} is not in its folder")
        try:
            chunk = archive.opened(path)
        except OSError as error:
            yield Refusal(name, path, f"cannot be opened ({error.strerror})")
            continue
        except ReadError as error:
            yield Refusal(name, path, str(error))
            continue
        assert isinstance(chunk, Chunk)
        for item in range(len(chunk)):
            group = Group(f"{name}/{item:06d}", path)
            try:
                group.fields = chunk.fields(item)
            except ReadError as error:
                group.fault = str(error)
            group.members = {leaf.name: chunk.member(item, leaf) for leaf in chunk.leaves if leaf.suffix}
            yield from converter.records(group)
    converter.report()
