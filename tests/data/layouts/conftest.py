"""What the tests of layouts share: files on disk, a scan, and a whole build from a source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medloom.data.collection import SourceConfig, source_of_config
from medloom.data.layouts import LAYOUTS, Refusal
from medloom.data.sample import Record


@dataclass
class Found:
    """What a scan yields, apart."""

    records: dict[str, Record]
    refused: dict[str, str]

    @property
    def only(self) -> Record:
        assert not self.refused, self.refused
        (record,) = self.records.values()
        return record


@dataclass
class Stored:
    """One sample of a finished folder of shards."""

    meta: dict[str, Any]
    image: np.ndarray
    mask: np.ndarray | None


def _put(root: Path, *names: str, data: bytes = b"junk") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def _scan(layout: str, root: Path, **keys: Any) -> Found:
    config = SourceConfig(dataset="d", layout=layout, root=str(root), **keys)
    source = source_of_config(config, Path("/"), "sources[0]")
    items = list(LAYOUTS[layout].scan(source.root, source, source.options))
    names = [item.name for item in items]
    assert len(set(names)) == len(names)
    return Found(
        {item.name: item for item in items if isinstance(item, Record)},
        {item.name: item.reason for item in items if isinstance(item, Refusal)},
    )


@pytest.fixture
def put() -> Callable[..., None]:
    """put(root, *names, data=b"junk"): write files."""
    return _put


@pytest.fixture
def scan() -> Callable[..., Found]:
    """scan(layout, root, options={...}, ...): the Records and Refusals of a source of a collection."""
    return _scan


@pytest.fixture
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Stored]]:
    """stored(layout, root, ...): the samples of shards built from the source, in the order of their names."""

    def build_it(layout: str, root: Path, **keys: Any) -> list[Stored]:
        from medloom.data.collection import Collection
        from medloom.data.collection import scan as scan_all
        from medloom.data.ingest.build import build
        from medloom.data.privacy import key_of
        from medloom.data.shards.reader import Shards

        out = tmp_path_factory.mktemp("shards") / "out"
        config = SourceConfig(dataset="d", layout=layout, root=str(root), **keys)
        source = source_of_config(config, Path("/"), "sources[0]")
        collection = Collection("all", root, (source,), (), "a salt of sixteen characters")
        result = build(collection, out)
        assert result.failures == []
        shards = Shards.open(out)
        found = {}
        for ref in shards.refs():
            sample = shards.sample(ref)
            found[sample.key] = Stored(sample.meta, sample.image, sample.mask)
        order = [key_of(collection.salt, "d", record.name) for _, record in scan_all(collection).records]
        return [found[key] for key in order]

    return build_it
