"""A folder of 10 million samples opens at the price of its manifest: no shard, no index is touched."""

from __future__ import annotations

import builtins
import os
import pickle
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from medloom.data.errors import ShardError
from medloom.data.shards.manifest import Manifest, ShardEntry, SourceEntry, sealed
from medloom.data.shards.reader import SampleRef, Shards
from medloom.data.stream.config import StreamConfig
from medloom.data.stream.stream import Stream

SOURCES, SHARDS, SAMPLES = 40, 500, 500  # shards a source, samples a shard: 10 million samples


@pytest.fixture(scope="module")
def manifest():
    sources = []
    for number in range(SOURCES):
        name, ndim = f"source_{number:02d}", 2 + number % 2
        shards = tuple(
            ShardEntry(f"{name}-{ndim}d-{i:05d}.tar", SAMPLES, 1024 * i, f"{number * SHARDS + i:064x}")
            for i in range(SHARDS)
        )
        sources.append(
            SourceEntry(
                id=f"{name}-{ndim}d", dataset=name, ndim=ndim, count=SHARDS * SAMPLES, licence="CC0-1.0",
                shards=shards, modalities={"ct": SHARDS * SAMPLES},
            )
        )  # fmt: skip
    return Manifest(name="large", sources=tuple(sources))


@pytest.fixture(scope="module")
def large(manifest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    manifest.save(folder)
    for entry in manifest.shards:
        with (folder / entry.file).open("wb") as handle:
            handle.truncate(entry.bytes)  # a hole: no pixels
    return folder


@pytest.fixture
def calls(monkeypatch):
    """How often files are opened, mapped, read and looked at."""
    counts: Counter[str] = Counter()

    def count(module, name):
        real = getattr(module, name)

        def counted(*arguments, **options):
            counts[name] += 1
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, counted)

    for module, name in ((builtins, "open"), (os, "open"), (os, "stat"), (os, "pread"), (os, "preadv")):
        count(module, name)
    count(np, "memmap")
    return counts


def test_it_comes_back_as_it_was(manifest, large):
    loaded = Manifest.load(large)
    assert loaded == manifest
    assert loaded.hash == manifest.hash
    assert loaded.count == 10_000_000
    assert sealed(large)


def test_memory_follows_the_shards_and_not_the_samples(large):
    Manifest.load(large)
    tracemalloc.start()
    loaded = Manifest.load(large)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    shards = len(loaded.shards)
    assert shards == SOURCES * SHARDS
    assert held < 1000 * shards  # bytes
    assert peak < 5000 * shards


def test_opening_reads_one_file(large, calls):
    shards = Shards.open(large)
    assert len(shards) == 10_000_000
    assert next(iter(shards.refs("source_07-3d"))) == SampleRef(7 * SHARDS, 0)
    assert shards.source_of(SOURCES * SHARDS - 1).id == "source_39-3d"
    assert calls["memmap"] == calls["pread"] == calls["preadv"] == 0
    assert calls["open"] + calls["stat"] <= 5
    assert len(pickle.dumps(shards)) < 1000  # what a worker is sent


def test_a_stream_looks_once_at_each_shard_of_its_own(large, calls):
    config = StreamConfig(shards=str(large), ndim=2, exclude=["source_00"])
    Stream(config)
    wanted = (SOURCES // 2 - 1) * SHARDS
    assert wanted <= calls["stat"] <= wanted + 10
    assert calls["memmap"] == calls["pread"] == calls["preadv"] == 0


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_one_bad_shard_among_thousands_is_named_first(large, damage):
    entries = Manifest.load(large).shards
    bad, later = large / entries[7001].file, large / entries[9000].file
    sizes = [path.stat().st_size for path in (bad, later)]
    later.rename(later.with_suffix(".away"))
    if damage == "missing":
        bad.rename(bad.with_suffix(".away"))
    else:
        os.truncate(bad, 5)
    try:
        with pytest.raises(
            ShardError, match=rf"{bad.name} {'is missing' if damage == 'missing' else 'has 5'}"
        ):
            Shards.open(large).check(entries)
    finally:
        for path, size in zip((bad, later), sizes, strict=True):
            with path.open("ab") as handle:
                handle.truncate(size)
            path.with_suffix(".away").unlink(missing_ok=True)
    Shards.open(large).check(entries)
