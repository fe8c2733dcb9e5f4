"""Windows of remote shards: chosen to fit the cache, fetched and pinned before they are read."""

from __future__ import annotations

import logging
import multiprocessing
import time

import numpy as np
import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.data.ingest.preprocess import describe
from medloom.data.loader.loader import loader
from medloom.data.remote import ahead as fetching
from medloom.data.remote.ahead import choose_window
from medloom.data.shards.manifest import Manifest, ShardEntry, SourceEntry
from medloom.data.shards.writer import ShardWriter
from medloom.data.stream.config import StreamConfig
from medloom.data.stream.stream import Stream

from .conftest import make_sample
from .loopback import serve


def entries(source: int, sizes: list[int]) -> tuple[ShardEntry, ...]:
    return tuple(ShardEntry(f"{source}-{i}.tar", 1, size, f"{source}-{i}") for i, size in enumerate(sizes))


def sources(*sizes: list[int]) -> list[SourceEntry]:
    return [
        SourceEntry(id=f"s{n}-2d", dataset=f"s{n}", ndim=2, count=len(of), licence="x",
                    shards=entries(n, of))
        for n, of in enumerate(sizes)
    ]  # fmt: skip


def test_the_default_window_is_the_widest_that_fits_twice():
    two = sources([10] * 40, [10] * 3)
    assert choose_window(None, two, 1e9, ranged=False) == 16
    assert choose_window(None, two, 10 * (2 * 7 + 3), ranged=False) == 7
    assert choose_window(None, two, 10 * (2 * 7 + 3), ranged=True) == 7
    assert choose_window(None, two, 10 * (2 + 2), ranged=False) == 1
    assert choose_window(None, sources([10] * 9), 1e9, ranged=False) is None
    assert choose_window(None, sources([99, 1, 1, 1]), 110, ranged=False) is None
    assert choose_window(5, two, 80, ranged=False) == 5
    assert choose_window(500, two, 80, ranged=True) == 500
    assert choose_window(None, two, 1, ranged=True) == 1
    with pytest.raises(ConfigError, match=r"data\.window 6 needs .* raise data\.cache_gb"):
        choose_window(6, two, 80, ranged=False)
    with pytest.raises(ConfigError, match=r"one shard of each source and the next take"):
        choose_window(None, two, 39, ranged=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten shards of four pictures, each of the same size."""
    path, rng, entries = tmp_path_factory.mktemp("ahead"), np.random.default_rng(0), []
    for shard in range(10):
        with ShardWriter(path / f"a-2d-{shard:05d}.tar") as writer:
            for number in range(4):
                image = rng.integers(0, 255, (1, 60, 64)).astype(np.uint8)
                stats = describe(image, "x-ray")
                writer.add(make_sample(f"a-{shard}-{number}", image, stats=stats, spacing=[1.0, 1.0]))
        entries.append(writer.entry)
    source = SourceEntry(id="a-2d", dataset="a", ndim=2, count=40, licence="x", shards=tuple(entries))
    Manifest(name="test", sources=(source,)).save(path)
    return path


@pytest.fixture
def server(folder):
    with serve(folder) as running:
        yield running


def config(shards, cache="", **kwargs) -> StreamConfig:
    known = {"shards": str(shards), "cache": str(cache), "crop": [16, 20], "batch_size": 4, "workers": 0}
    return StreamConfig(**known | kwargs)


def run(config, steps=20, stream=None, context=None) -> list[dict]:
    stream = stream or Stream(config)
    found = loader(stream, rank=0, world=1, start_step=0, steps=steps, context=context)
    return [{name: batch[name] for name in ("image", "key", "position")} | {} for batch in found]


def same(a, b) -> bool:
    return all(
        x["key"] == y["key"] and torch.equal(x["image"], y["image"]) for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize(
    "options", [{"access": "cache"}, {"access": "range"}, {"access": "cache", "workers": 2}]
)
def test_a_run_over_http_has_the_pixels_of_the_disk(folder, server, tmp_path, options):
    assert same(run(config(server.url, tmp_path / "c", **options)), run(config(folder)))
    for window in (1, 3):
        remote = config(server.url, tmp_path / "c", window=window, **options)
        assert same(run(remote, steps=12), run(config(folder, window=window), steps=12))


def files_of(batches) -> list[set[str]]:
    return [{key.split("-")[1] for key in batch["key"]} for batch in batches]


def test_the_next_window_is_there_before_it_is_read(folder, server, tmp_path):
    size = max(path.stat().st_size for path in folder.glob("*.tar"))
    stream = Stream(config(server.url, tmp_path / "c", window=2, cache_gb=4.6 * size / 1e9))
    order, cache = stream.classes[0].order, stream.shards.folder.cache
    entries = stream.shards.manifest.shards
    for step in range(20):
        now = order.locate(range(4 * step, 4 * step + 4))
        stream.__getitems__(range(4 * step, 4 * step + 4))
        (epoch,), (window,) = set(now.epoch.tolist()), set(order.windows(now).tolist())
        wanted = {
            cache.path(entries[shard])
            for number in (window, window + 1)
            for shard in order.window_shards(0, epoch, number)
        }
        for _ in range(1000):
            if all(path.exists() for path in wanted):
                break
            time.sleep(0.01)
        assert all(path.exists() for path in wanted), step
        assert len(list(cache.folder.glob("*.tar"))) <= 4
    downloads = sum(server.gets(entry.file) for entry in entries)
    assert 10 <= downloads <= 22  # two epochs of ten shards, and the next window of two


def test_the_window_under_way_stays_when_others_want_the_room(folder, server, tmp_path):
    size = max(path.stat().st_size for path in folder.glob("*.tar"))
    stream = Stream(config(server.url, tmp_path / "c", window=2, cache_gb=4.6 * size / 1e9))
    stream.__getitems__(range(4))
    order, folder_ = stream.classes[0].order, stream.shards.folder
    entries = stream.shards.manifest.shards
    held = [entries[n] for number in (0, 1) for n in order.window_shards(0, 0, number)]
    for _ in range(1000):
        if len(stream.classes[0].ahead._pins._held) == 4:
            break
        time.sleep(0.01)
    others = [entry for entry in entries if entry not in held]
    assert len(others) == 6
    assert all(folder_.cache.prefetch(entry, folder_.store) is None for entry in others)
    assert all(folder_.cache.path(entry).exists() for entry in held)
    stream.classes[0].ahead._pins.stop()
    stream.shards.close()
    assert folder_.cache.prefetch(others[0], folder_.store) is not None


def test_pins_go_with_the_stream_and_when_nobody_reads(server, tmp_path, monkeypatch):
    stream = Stream(config(server.url, tmp_path / "c"))
    stream[0]
    pins = stream.classes[0].ahead._pins
    assert pins.alive()
    del stream
    assert not pins.alive() and not pins._held
    monkeypatch.setattr(fetching, "IDLE", 0.1)
    stream = Stream(config(server.url, tmp_path / "c"))
    stream[0]
    pins = stream.classes[0].ahead._pins
    for _ in range(1000):
        if not pins.alive():
            break
        time.sleep(0.01)
    assert not pins.alive() and not pins._held
    assert stream[1]["key"] and stream.classes[0].ahead._pins is not pins


def _read(stream, queue):
    queue.put([stream[position]["key"] for position in range(12)])


def test_a_forked_reader_fetches_for_itself(server, tmp_path):
    stream = Stream(config(server.url, tmp_path / "c", window=2))
    want = [stream[position]["key"] for position in range(12)]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=_read, args=(stream, queue))
    worker.start()
    assert queue.get(timeout=60) == want
    worker.join(60)
    assert worker.exitcode == 0


def test_the_choice_is_said_in_the_log(folder, server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    size = sum(path.stat().st_size for path in folder.glob("*.tar")) / 10
    stream = Stream(config(server.url, tmp_path / "c", cache_gb=6.5 * size / 1e9))
    assert stream.classes[0].order.window == 3
    assert "data.window: 3 shards of a source are shuffled together" in caplog.text
