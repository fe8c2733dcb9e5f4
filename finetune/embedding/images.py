"""What there is to embed: files and folders of images, or shards, as one list of `Item`.

Files pass through the readers of `medloom predict`, so that the encoder sees them as it saw its training
data; names are relative to the folder that was given, because they go into the table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from ...data.errors import ConfigError
from ...data.layouts.base import Source
from ...data.remote.stores import is_url
from ...data.sample import parse_modality
from ...data.shards.manifest import MANIFEST
from ...data.shards.reader import SampleRef, Shards
from ..prediction.held import hold
from ..prediction.inputs import Input, find_inputs, read_input

Images = Iterator[tuple[Shards, SampleRef]]


@dataclass(frozen=True, slots=True)
class Item:
    """A file, a DICOM series or a sample of shards; `read` gives its images one at a time."""

    file: str  # path below the folder that was given; key in shards. Unique
    group: str  # the folder that it lies in; dataset in shards
    stamp: str  # changes when the file does
    read: Callable[[], Images]


def find_images(place: str | Path, modality: str | None = None, exclude: Sequence[str] = ()) -> list[Item]:
    """What lies at a path: an image, a folder of images, or a folder or URL of shards.

    Args:
        modality: of the images, where they do not say it; not for shards, which say it.
        exclude: globs; files that match one are left out (label maps beside their images).

    Raises:
        ConfigError: nothing there, or nothing that medloom reads.
    """
    if is_url(place) or (Path(place) / MANIFEST).is_file():
        if modality is not None or exclude:
            raise ConfigError(f"{place}: shards state their modality: leave out --modality and --exclude")
        return list(_samples(Shards.open(place)))
    root = Path(place)
    source = Source(
        dataset="embed", layout="files", root=root, burned_in="keep",
        modality=parse_modality(modality) if modality else None,
    )  # fmt: skip
    found = [_file(item, root, source) for item in find_inputs([root])]
    kept = [item for item in found if not any(fnmatch(item.file, glob) for glob in exclude)]
    if not kept:
        raise ConfigError(f"{place}: all {len(found)} images match --exclude {' '.join(exclude)}")
    return kept


def _file(item: Input, root: Path, source: Source) -> Item:
    name = item.name
    if len(item.paths) == 1:
        path = item.paths[0]
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) and path != root else path.name

    def read() -> Images:
        for sample in read_input(item, source):
            yield hold([sample], []).shards, SampleRef(0, 0)

    # A series is called as its folder, so that what it lies in is one further up.
    return Item(name, name.rpartition("/")[0], _stamp(item), read)


def _stamp(item: Input) -> str:
    try:
        facts = json.dumps(item.stamp)
    except OSError:  # gone since: reading it will say so
        facts = ""
    return hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()


def _samples(shards: Shards) -> Iterator[Item]:
    stamp = shards.manifest.hash[:16]
    for ref in shards.refs():
        meta = shards.meta(ref)
        yield Item(meta["key"], str(meta["dataset"]), stamp, lambda ref=ref: iter([(shards, ref)]))
