"""The cache of remote shards: fetched once a node, resumed after a kill, bounded, never evicted in use."""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
import shutil
import signal
import time
from collections import namedtuple
from pathlib import Path

import pytest
from medloom.data.errors import StoreError
from medloom.data.remote import cache as caching
from medloom.data.remote.cache import ShardCache, default_folder
from medloom.data.remote.stores import Patience, Remote
from medloom.data.shards.index import file_sha256
from medloom.data.shards.manifest import ShardEntry

from .loopback import serve

QUICK = Patience(attempts=3, timeout=10.0, wait=0.01)
SIZE = 300_000


@pytest.fixture
def files(tmp_path):
    """Five files that stand for shards, and their entries."""
    folder = tmp_path / "store"
    folder.mkdir()
    entries = []
    for number in range(5):
        path = folder / f"s-{number}.tar"
        path.write_bytes(bytes([number, 7]) * (SIZE // 2))
        entries.append(ShardEntry(path.name, 1, SIZE, file_sha256(path)))
    return folder, entries


@pytest.fixture
def server(files):
    with serve(files[0]) as running:
        yield running


@pytest.fixture
def remote(server):
    return Remote(server.url, QUICK)


def held(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".tar", ".partial"))


def test_a_shard_is_fetched_once_and_read_from_disk(files, server, remote, tmp_path):
    cache, entry = ShardCache(tmp_path / "c"), files[1][0]
    for _ in range(3):
        descriptor = cache.open(entry, remote)
        assert os.pread(descriptor, SIZE, 0) == (files[0] / entry.file).read_bytes()
        os.close(descriptor)
    assert server.sent(entry.file) == SIZE
    assert held(cache.folder) == [f"{entry.sha256}.tar"]


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("MEDLOOM_CACHE", raising=False)
    assert default_folder() == Path(os.environ["XDG_CACHE_HOME"]) / "medloom" / "shards"
    monkeypatch.setenv("MEDLOOM_CACHE", str(tmp_path / "named"))
    assert ShardCache().folder == tmp_path / "named"
    assert ShardCache(tmp_path / "given").folder == tmp_path / "given"


def _open_all(cache, entries, remote, start, queue):
    start.wait()
    descriptors = [cache.open(entry, remote) for entry in entries]
    queue.put([os.fstat(descriptor).st_size for descriptor in descriptors])


def test_processes_that_want_a_shard_at_once_download_it_once(files, server, remote, tmp_path):
    server.pause = 0.02
    cache, entries = ShardCache(tmp_path / "c"), files[1][:2]
    context = multiprocessing.get_context("fork")
    start, queue = context.Event(), context.Queue()
    workers = [
        context.Process(target=_open_all, args=(cache, entries, remote, start, queue)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    start.set()
    assert [queue.get(timeout=60) for _ in workers] == [[SIZE, SIZE]] * 4
    for worker in workers:
        worker.join(60)
    assert [server.sent(entry.file) for entry in entries] == [SIZE, SIZE]
    assert held(cache.folder) == sorted(f"{entry.sha256}.tar" for entry in entries)


def _open_one(cache, entry, remote):
    cache.open(entry, remote)


def test_a_killed_download_goes_on_where_it_ended(files, server, remote, tmp_path, monkeypatch):
    monkeypatch.setattr("medloom.data.remote.stores.PIECE", 50_000)
    server.pause = 0.05
    cache, entry = ShardCache(tmp_path / "c"), files[1][0]
    worker = multiprocessing.get_context("fork").Process(target=_open_one, args=(cache, entry, remote))
    worker.start()
    partial = cache.folder / f"{entry.sha256}.{SIZE}.partial"
    for _ in range(2000):
        if partial.exists() and partial.stat().st_size >= 100_000:
            break  # each write holds a piece of 50,000 bytes
        time.sleep(0.005)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(60)
    there = partial.stat().st_size
    assert 100_000 <= there < SIZE
    before = len(server.seen)
    os.close(cache.open(entry, remote))
    ranges = {asked for _, asked, _ in server.seen[before:]}
    assert ranges == {f"bytes={at}-{at + 49_999}" for at in range(there, SIZE, 50_000)}
    assert file_sha256(cache.path(entry)) == entry.sha256
    assert held(cache.folder) == [cache.path(entry).name]


def test_a_cache_that_is_emptied_during_a_download_fills_again(files, server, remote, tmp_path, monkeypatch):
    cache, entry, real = ShardCache(tmp_path / "c"), files[1][0], caching._fill
    emptied = []

    def fill(*args):
        found = real(*args)
        if not emptied:
            emptied.extend(cache.folder.iterdir())
            for path in emptied:
                path.unlink()
        return found

    monkeypatch.setattr(caching, "_fill", fill)
    os.close(cache.open(entry, remote))
    assert emptied and file_sha256(cache.path(entry)) == entry.sha256


@pytest.mark.parametrize("content", [b"", b"rubbish", b"x" * SIZE, b"x" * (SIZE + 9)])
def test_a_foreign_partial_file_does_no_harm(files, remote, tmp_path, content):
    cache, entry = ShardCache(tmp_path / "c"), files[1][0]
    (cache.folder / f"{entry.sha256}.{SIZE}.partial").write_bytes(content)
    os.close(cache.open(entry, remote))
    assert file_sha256(cache.path(entry)) == entry.sha256


def test_a_cached_file_of_another_size_is_fetched_again(files, remote, tmp_path):
    cache, entry = ShardCache(tmp_path / "c"), files[1][0]
    cache.path(entry).write_bytes(b"short")
    os.close(cache.open(entry, remote))
    assert file_sha256(cache.path(entry)) == entry.sha256


def test_the_least_recently_used_goes_first(files, remote, tmp_path):
    cache, entries = ShardCache(tmp_path / "c", limit=3.5 * SIZE), files[1]
    for number in (0, 1, 2, 0, 3):  # 0 was used again: 1 is the oldest
        os.close(cache.open(entries[number], remote))
        time.sleep(0.02)
    assert held(cache.folder) == sorted(cache.path(entries[n]).name for n in (0, 2, 3))


def test_what_is_in_use_is_never_evicted(files, server, remote, tmp_path, caplog):
    cache, entries = ShardCache(tmp_path / "c", limit=2.5 * SIZE), files[1]
    pinned = [cache.open(entries[n], remote) for n in (0, 1)]
    assert cache.prefetch(entries[2], remote) is None and not server.gets(entries[2].file)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    with caplog.at_level(logging.WARNING):
        pinned.append(cache.open(entries[2], remote))  # a reader waits for it: the limit gives way
    assert "more than the limit" in caplog.text and "data.cache_gb" in caplog.text
    assert held(cache.folder) == sorted(cache.path(entries[n]).name for n in (0, 1, 2))
    os.close(pinned.pop(0))
    os.close(pinned.pop(0))
    os.close(cache.prefetch(entries[3], remote))
    assert held(cache.folder) == sorted(cache.path(entries[n]).name for n in (2, 3))
    os.close(pinned.pop())


def _pin(cache, entry, remote, ready):
    cache.open(entry, remote)
    ready.set()
    time.sleep(600)


def test_a_pin_dies_with_its_process(files, remote, tmp_path):
    cache, entries = ShardCache(tmp_path / "c", limit=1.5 * SIZE), files[1]
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    worker = context.Process(target=_pin, args=(cache, entries[0], remote, ready))
    worker.start()
    try:
        assert ready.wait(60)
        assert cache.prefetch(entries[1], remote) is None
    finally:
        os.kill(worker.pid, signal.SIGKILL)
        worker.join(60)
    os.close(cache.prefetch(entries[1], remote))
    assert held(cache.folder) == [cache.path(entries[1]).name]


def test_downloads_under_way_count_in_full_and_are_not_evicted(files, server, remote, tmp_path):
    cache, entries = ShardCache(tmp_path / "c", limit=1.5 * SIZE), files[1]
    partial = cache.folder / f"{entries[0].sha256}.{SIZE}.partial"
    with partial.open("wb") as under_way:
        fcntl.flock(under_way, fcntl.LOCK_EX)
        assert cache.prefetch(entries[1], remote) is None
        assert cache.prefetch(entries[0], remote) is None
        assert partial.exists() and not server.seen
    os.close(cache.prefetch(entries[1], remote))
    assert held(cache.folder) == [cache.path(entries[1]).name]


def test_a_full_disk_is_said_before_the_download(files, server, remote, tmp_path, monkeypatch):
    cache, entries = ShardCache(tmp_path / "c"), files[1]
    os.close(cache.open(entries[0], remote))
    usage, free = namedtuple("usage", "total used free"), [caching._SPARE + SIZE // 2]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, free[0]))
    os.close(cache.open(entries[1], remote))  # evicting the first makes the room
    assert held(cache.folder) == [cache.path(entries[1]).name]
    server.seen.clear()
    free[0] = 0
    kept = cache.open(entries[1], remote)
    with pytest.raises(StoreError, match=r"no room for s-2\.tar .*the disk lacks .*data\.cache"):
        cache.open(entries[2], remote)
    assert cache.prefetch(entries[2], remote) is None
    assert not server.seen and held(cache.folder) == [cache.path(entries[1]).name]
    os.close(kept)


def test_a_failed_download_leaves_nothing_that_counts(files, server, remote, tmp_path):
    cache, entry = ShardCache(tmp_path / "c"), files[1][0]
    server.missing.add(entry.file)
    with pytest.raises(StoreError, match="404"):
        cache.open(entry, remote)
    assert held(cache.folder) == []


def test_small_files_are_made_once(tmp_path):
    cache, calls = ShardCache(tmp_path / "c"), []
    for _ in range(2):
        path = cache.keep("a.idx", lambda: calls.append(1) or b"text")
    assert path.read_bytes() == b"text" and calls == [1]
