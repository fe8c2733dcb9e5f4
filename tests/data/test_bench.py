"""The bench of shards: its numbers agree, its advice follows from them, and it leaves nothing behind."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from medloom.data.collection import Collection
from medloom.data.ingest.build import build
from medloom.data.loader import bench_stages
from medloom.data.loader.bench import BenchResult, Rate, Spread, Wait, bench
from medloom.data.loader.bench_stages import Stages, local_files, stages
from medloom.data.loader.usage import Load, cpu_seconds, disk_bytes, drop_cache, resident_bytes
from medloom.data.phantoms.phantoms import generate
from medloom.data.stream.config import StreamConfig
from medloom.data.stream.stream import Stream


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    built = build(Collection.load(generate(folder / "phantoms", subjects=6, size=32)), folder / "shards")
    assert built.manifest.count
    return folder / "shards"


def config(shards: Path, ndim: int = 3) -> StreamConfig:
    return StreamConfig(shards=str(shards), ndim=ndim, crop=[24] * ndim, batch_size=4, prefetch=1)


def test_every_number_is_there_and_the_workers_are_gone(shards: Path) -> None:
    told: list[tuple[int, int, str]] = []
    result = bench(
        config(shards), workers=[1, 2], step_ms=[1.0, 400.0], seconds=0.05, repeats=2, crops=4,
        progress=lambda done, total, what: told.append((done, total, what)),
    )  # fmt: skip
    assert [rate.workers for rate in result.rates] == [1, 2]
    for rate in result.rates:
        assert 0 < rate.crops_per_s.low <= rate.crops_per_s.median <= rate.crops_per_s.high
        assert rate.cpu_ms.low > 0
    assert {(wait.workers, wait.step_ms) for wait in result.waits} == {
        (1, 1.0),
        (1, 400.0),
        (2, 1.0),
        (2, 400.0),
    }
    slow, fast = ([w.wait_ms.median for w in result.waits if w.step_ms == step] for step in (400.0, 1.0))
    assert all(wait.wait_ms.low >= 0 for wait in result.waits) and min(slow) < 400 and max(fast) > 0
    assert 0 <= result.others <= 1 and result.prefetch >= 2 and result.cores >= 1
    assert result.limit.startswith("warm: ")
    assert [done for done, *_ in told] == list(range(told[0][1]))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("ndim", [2, 3])
def test_stages_add_up_and_count_what_was_read(shards: Path, ndim: int) -> None:
    pread, preadv = os.pread, os.preadv
    found = stages(Stream(config(shards, ndim)), crops=6, seconds=0.1)
    assert (os.pread, os.preadv) == (pread, preadv), "the clock on reads must come off again"
    assert found.read_ms > 0 and found.decode_ms > 0 and found.transport_ms > 0
    assert found.crop_ms == pytest.approx(found.read_ms + found.decode_ms)
    largest = max(path.stat().st_size for path in local_files(Stream(config(shards, ndim))))
    assert 100 < found.read_bytes < largest


def test_slow_reads_are_found_in_the_reads(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv, pread = os.preadv, os.pread

    def slow(call):
        def delayed(*arguments):
            time.sleep(0.01)
            return call(*arguments)

        return delayed

    before = stages(Stream(config(shards)), crops=4, seconds=0.1)
    monkeypatch.setattr(os, "preadv", slow(preadv))
    monkeypatch.setattr(os, "pread", slow(pread))
    after = stages(Stream(config(shards)), crops=4, seconds=0.1)
    assert after.read_ms >= 10 > before.read_ms
    assert after.read_ms - before.read_ms > abs(after.decode_ms - before.decode_ms)


STAGES = Stages(
    crop_ms=10, read_ms=2, decode_ms=8, transport_ms=1, read_bytes=1e6, cold_ms=None, cold_read_ms=None,
    unevenness=1.0,
)  # fmt: skip
RATE = Rate(2, Spread(150, 140, 160), Spread(10, 9, 11))
RESULT = BenchResult(STAGES, [RATE], [], batch=8, cores=4, others=0.0)


def test_the_advice_follows_from_the_numbers() -> None:
    assert RESULT.workers_for(200) == 1  # 8 crops of 10 ms in 200 ms: 0.4 of a worker
    assert RESULT.workers_for(50) == 2  # 1.6 workers, and a quarter to spare
    assert RESULT.workers_for(10) is None  # eight workers and more; there are four cores
    assert RESULT.prefetch == 2
    assert replace(RESULT, stages=replace(STAGES, unevenness=4.2)).prefetch == 5
    assert Wait(1, 100, Spread(4, 1, 50)).keeps_up and not Wait(1, 100, Spread(6, 1, 50)).keeps_up


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "warm: decoding limits, 73 %"),
        ({"read_ms": 20.0}, "the disk (page cache) limits"),
        ({"transport_ms": 30.0}, "transport limits"),
        ({}, "cold: not measured"),
        ({"cold_read_ms": 90.0}, "cold: the disk limits"),
        ({"cold_read_ms": 3.0}, "cold: decoding still limits"),
    ],
)
def test_the_limit_is_named(changes: dict[str, float], words: str) -> None:
    assert words in replace(RESULT, stages=replace(STAGES, **changes)).limit


def test_transport_carries_the_crops_of_the_stream(shards: Path) -> None:
    stream = Stream(config(shards))
    prepared = bench_stages._Prepared(stream, stream.__getitems__([0, 1]))
    given = prepared.__getitems__([4, 5, 6])
    assert [sample["position"] for sample in given] == [4, 5, 6]
    assert given[0]["image"] is given[2]["image"] and given[0]["image"] is not given[1]["image"]


def test_usage_counts_this_process_and_its_children() -> None:
    load, before = Load.now(), cpu_seconds()
    child = multiprocessing.get_context("fork").Process(target=_burn, args=(0.3,))
    child.start()
    _burn(0.1)
    child.join()
    used = cpu_seconds() - before
    assert 0.35 < used < 3
    assert 0 <= load.share_of_others() <= 1
    assert resident_bytes() > 10e6


def test_a_dropped_file_comes_from_the_disk_again(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(os.urandom(1 << 20))
    drop_cache([path])
    before = disk_bytes()
    assert len(path.read_bytes()) == 1 << 20
    after = disk_bytes()
    if before is None or after is None or after == before:
        pytest.skip("the folder of the tests lies in memory, or the kernel does not count")
    assert after - before >= 1 << 20


def _burn(seconds: float) -> None:
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass
