"""Sequential mode: webdataset's pipeline without its traps."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from medloom.data.errors import ConfigError, ShardError, StoreError
from medloom.data.ingest.preprocess import describe
from medloom.data.loader.loader import loader
from medloom.data.loader.sequential import SequentialSamples
from medloom.data.remote.shards import remote_shards
from medloom.data.remote.stores import Patience
from medloom.data.shards.manifest import Manifest, SourceEntry
from medloom.data.shards.reader import Shards
from medloom.data.shards.writer import ShardWriter
from medloom.data.stream.config import ShapeClass, StreamConfig
from medloom.data.stream.stream import Stream

from .conftest import make_sample
from .loopback import serve

COUNTS = {"a-2d": (4, 5, 3, 4, 4, 6), "b-2d": (3, 3), "v-3d": (2, 2)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Sources of small pictures and volumes in several shards."""
    path, rng, sources = tmp_path_factory.mktemp("sequential"), np.random.default_rng(0), []
    for source, counts in COUNTS.items():
        dataset, numbers, entries = source[0], itertools.count(), []
        for shard, count in enumerate(counts):
            with ShardWriter(path / f"{source}-{shard:05d}.tar") as writer:
                for _ in range(count):
                    shape = (1, 40, 44) if source[2] == "2" else (4, 20, 40, 44)
                    image = rng.integers(0, 250, shape).astype(np.uint8 if source[2] == "2" else np.int16)
                    modality = "x-ray" if source[2] == "2" else "mri"
                    writer.add(
                        make_sample(
                            f"{dataset}-{next(numbers):03d}", image, spacing=[1.0] * (len(shape) - 1),
                            stats=describe(image, modality), modality=modality,
                        )
                    )  # fmt: skip
            entries.append(writer.entry)
        sources.append(
            SourceEntry(id=source, dataset=dataset, ndim=int(source[2]), count=sum(counts), licence="x",
                        shards=tuple(entries))
        )  # fmt: skip
    Manifest(name="test", sources=tuple(sources)).save(path)
    return path


def config(folder, **kwargs) -> StreamConfig:
    known = {"shards": str(folder), "crop": [16, 20], "batch_size": 8, "workers": 0, "mode": "sequential",
             "buffer": 6}  # fmt: skip
    return StreamConfig(**known | kwargs)


def batches(config, *, world=1, rank=0, start=0, steps=4, stream=None, **kwargs) -> list[dict]:
    stream = stream or Stream(config)
    return list(loader(stream, rank=rank, world=world, start_step=start, steps=steps, **kwargs))


def keys(found: list[dict]) -> list[str]:
    return [key for batch in found for key in batch["key"]]


def lanes(config, *, world, workers=1, shards=12) -> list[list[str]]:
    """Files that each lane reads, in their order."""
    stream = Stream(config)
    files = [entry.file for entry in stream.shards.manifest.shards]
    found = []
    for lane in range(world * workers):
        samples = SequentialSamples(
            stream, rank=lane // workers, world=world, workers=workers, batches=0, batch=4
        )
        found.append([files[samples._shard(lane, turn)] for turn in range(shards)])
    return found


@pytest.mark.parametrize("ndim", [2, 3])
def test_samples_are_those_of_the_random_mode(folder, ndim):
    """The same sample at the same position gives the same crop, whatever the mode."""
    crop = [16, 20] if ndim == 2 else [8, 16, 16]
    settings = config(folder, ndim=ndim, crop=crop, workers=2)
    stream = Stream(settings)
    shards = {stream.shards.meta(ref)["key"]: ref for ref in stream.shards.refs()}
    from medloom.data.draws import uniform
    from medloom.data.stream.crop_reader import CROP_DRAWS

    for batch in batches(settings):
        assert batch["image"].shape[0] == 8
        for row, (key, position) in enumerate(zip(batch["key"], batch["position"].tolist(), strict=True)):
            drawn = uniform(0, "crop", [position], CROP_DRAWS)[0].tolist()
            want = stream.classes[0].crops.read(shards[key], stream.shards.meta(shards[key]), position, drawn)
            np.testing.assert_array_equal(batch["image"][row].numpy(), want["image"])
            for name in ("low", "high", "mean", "std", "spacing"):
                np.testing.assert_array_equal(batch[name][row].numpy(), want[name])
        assert batch["replaced"] == [None] * 8


def test_every_pass_sees_all_shards_in_another_order(folder):
    """Trap: shards are split before they are shuffled, so that a worker sees the same ones for ever; and a
    seeded shuffle repeats its order each epoch."""
    (one,) = lanes(config(folder, alpha=1.0, sources=["a"]), world=1, shards=60)
    passes = [one[at : at + 6] for at in range(0, 60, 6)]
    assert all(sorted(found) == sorted(one[:6]) for found in passes)
    assert len({tuple(found) for found in passes}) > 5
    for lane in lanes(config(folder, sources=["a"]), world=2, workers=3, shards=60):
        assert len(set(lane)) == 6


def test_ranks_and_workers_read_disjoint_shards(folder):
    """Trap: without RANK in the environment all ranks read the same shards."""
    found = lanes(config(folder, sources=["a"]), world=2, workers=3, shards=20)
    for turns in zip(*found, strict=True):
        assert len(set(turns)) == 6


def test_spawned_workers_split_without_an_environment(folder, monkeypatch):
    """Trap: under spawn, webdataset's splitters ask RANK and WORLD_SIZE."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    settings = config(folder, sources=["a"], workers=1, buffer=1)
    here = keys(batches(dataclasses.replace(settings, workers=0), world=2, rank=0, steps=2))
    found = [here, keys(batches(settings, world=2, rank=1, steps=2, context="spawn"))]
    shard_of = {
        shards.meta(ref)["key"]: ref.shard for shards in [Shards.open(folder)] for ref in shards.refs()
    }
    first = [{shard_of[key] for key in rank} for rank in found]
    assert first[0] and first[1] and not first[0] & first[1]


def test_two_runs_are_equal_and_two_seeds_differ(folder):
    """Trap: the default seed of resampling and of the shuffle is random."""
    runs = [keys(batches(config(folder, seed=seed, workers=2))) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("world", [1, 2, 8])
def test_every_rank_has_all_its_batches(folder, world, caplog):
    """Trap: fewer shards than ranks x workers raise, or leave a rank without data, where others wait."""
    settings = config(folder, sources=["b"], batch_size=16)
    with caplog.at_level(logging.WARNING):
        for rank in range(world):
            stream = Stream(settings)
            found = batches(settings, world=world, rank=rank, steps=5, stream=stream)
            assert [len(batch["key"]) for batch in found] == [16 // world] * 5
    assert ("2 shards for 8 ranks" in caplog.text) == (world == 8)


def test_a_resumed_run_starts_at_the_shard_it_was_in(folder):
    """Trap: webdataset keeps no state. Here it is arithmetic on the step."""
    settings = config(folder, sources=["a"], alpha=1.0, buffer=1)
    stream = Stream(settings)
    counts = {entry.file: entry.count for entry in stream.shards.manifest.shards}
    (order,) = lanes(settings, world=1, shards=40)
    shard_of = {stream.shards.meta(ref)["key"]: ref.shard for ref in stream.shards.refs()}
    files = [entry.file for entry in stream.shards.manifest.shards]
    for step in (0, 1, 3, 7):
        read, turn = 8 * step - 1, 0
        while read >= counts[order[turn]]:
            read, turn = read - counts[order[turn]], turn + 1
        got = keys(batches(settings, start=step, steps=step + 2, stream=Stream(settings)))
        seen = [file for file, _ in itertools.groupby(files[shard_of[key]] for key in got)]
        assert seen == [file for file, _ in itertools.groupby(order[turn:])][: len(seen)]


def test_the_workers_of_a_resumed_run_keep_their_lanes(folder):
    stream = Stream(config(folder, workers=3))
    whole = SequentialSamples(stream, rank=1, world=2, workers=3, batches=0, batch=4)
    later = SequentialSamples(stream, rank=1, world=2, workers=3, batches=100, batch=4)
    assert {whole.lane(worker)[0] for worker in range(3)} == {3, 4, 5}
    # The worker that continues with batch 100 has the lane of batch 1: both are 1 modulo three workers.
    assert [later.lane(worker)[0] for worker in range(3)] == [4, 5, 3]
    counts = [entry.count for entry in stream.shards.manifest.shards]
    for worker, batches_before in zip(range(3), (33, 33, 34), strict=True):
        lane, turn = later.lane(worker)
        before = sum(counts[later._shard(lane, t)] for t in range(turn))
        assert before <= 4 * batches_before - 6 < before + counts[later._shard(lane, turn)]


def test_sources_have_their_share(folder):
    found = Counter(key[0] for key in keys(batches(config(folder, alpha=0.0), steps=60)))
    assert 0.4 < found["a"] / found.total() < 0.6


def test_crops_of_a_sample_share_one_read(folder):
    found = batches(config(folder, crops_per_sample=4), steps=6)
    for batch in found:
        assert [len(list(group)) for _, group in itertools.groupby(batch["key"])] == [4, 4]
        assert not torch.equal(batch["image"][0], batch["image"][1])


@pytest.fixture
def damaged(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def flip_member(folder: Path, shard: int, ordinal: int, place: float = 0.5) -> str:
    """Flip a bit of an image, or of its tar header (place 0); returns the key."""
    shards = Shards.open(folder)
    refs = [ref for ref in shards.refs() if (ref.shard, ref.ordinal) == (shard, ordinal)]
    key, row = shards.meta(refs[0])["key"], shards.index(shard).members_of(ordinal)[1]
    offset = row.offset + (int(row.size * place) if place else -400)
    path = folder / shards.manifest.shards[shard].file
    data = bytearray(path.read_bytes())
    data[offset] ^= 8
    path.write_bytes(data)
    return key


@pytest.mark.parametrize("place", [0.5, 0.0], ids=["bytes", "header"])
def test_damage_is_noticed_replaced_and_counted(damaged, place):
    """Trap: corrupted bytes pass in silence, and a broken header ends a tar as if it were complete."""
    key = flip_member(damaged, 0, 1, place)
    found = batches(config(damaged, sources=["a"], workers=1), steps=16)
    assert [len(batch["key"]) for batch in found] == [8] * 16
    assert key not in keys(found)
    noted = {
        (e["shard"], e["sample"]) for batch in found for entries in batch["replaced"] for e in entries or ()
    }
    assert ("a-2d-00000.tar", 1) in noted
    assert noted <= {("a-2d-00000.tar", ordinal) for ordinal in (1, 2, 3)}


def test_a_cut_tar_costs_its_lost_samples_and_no_more(damaged):
    path = damaged / "a-2d-00002.tar"
    found = [batches(config(damaged, sources=["a"]), steps=16)]
    path.write_bytes(path.read_bytes()[:2500])
    shards = Shards.open(damaged)
    shards.check = lambda entries: None  # cut after the run was opened
    found.append(batches(config(damaged), steps=16, stream=Stream(config(damaged, sources=["a"]), shards)))
    assert len(found[0]) == len(found[1])
    lost = {e["sample"] for batch in found[1] for entries in batch["replaced"] for e in entries or ()}
    assert lost and lost <= {0, 1, 2}
    assert len(set(keys(found[0])) - set(keys(found[1]))) == len(lost)


def test_damage_everywhere_ends_the_run(damaged):
    for path in damaged.glob("a-2d-*.tar"):
        path.write_bytes(b"\1" * path.stat().st_size)
    with pytest.raises(ShardError, match="8 shards in a row hold no sound sample"):
        batches(config(damaged, sources=["a"]))
    with pytest.raises(ShardError, match=r"source a-2d: 4 samples cannot be read, data\.failure_budget is 3"):
        batches(config(damaged, failure_budget=3), steps=20)


def test_tars_come_over_http_with_the_same_pixels(folder, tmp_path):
    settings = config(folder, workers=1)
    want = batches(settings)
    with serve(folder) as server:
        server.faults, server.only = ["cut", "500", "cut"], ".tar"
        options = {"cache": str(tmp_path / "c"), "patience": Patience(4, 10.0, 0.01), "access": "range"}
        stream = Stream(
            dataclasses.replace(settings, shards=server.url), remote_shards(server.url, **options)
        )
        got = batches(settings, stream=stream)
        assert keys(got) == keys(want)
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(got, want, strict=True))
        assert not server.faults and not list((tmp_path / "c").glob("*.tar"))
        server.ranges = False
        assert keys(batches(settings, stream=stream)) == keys(want)
        server.missing |= {f"a-2d-{n:05d}.tar" for n in range(6)}
        with pytest.raises(StoreError, match=r"a-2d-0000\d\.tar: is not there \(404\)"):
            batches(settings, stream=stream)


def test_what_it_cannot_do_is_refused(folder):
    for wrong in ({"epoch": "cover"}, {"classes": [ShapeClass(), ShapeClass(crop=[8, 8])]}):
        with pytest.raises(ConfigError, match=r"data\.mode sequential reads one shape class"):
            batches(config(folder, **wrong))
    with pytest.raises(ConfigError, match=r"data\.mode is 'sequentiel'; did you mean sequential"):
        Stream(config(folder, mode="sequentiel"))
