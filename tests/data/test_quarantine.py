"""Damage is remembered over workers, ranks and restarts; the budget is that of the whole run."""

import dataclasses
import json
import logging
import multiprocessing
import pickle

import pytest
import torch
from medloom.data.datamodule import PretrainData
from medloom.data.errors import ShardError
from medloom.data.shards.reader import Shards
from medloom.data.stream.config import StreamConfig
from medloom.data.stream.quarantine import QUARANTINE, Quarantine
from medloom.data.stream.stream import Stream

BAD = ("a-0003", "a-0009")


@pytest.fixture
def folder(tmp_path, make_layout, damage):
    path = make_layout(tmp_path / "shards", {"a-2d": [7, 6], "b-2d": [5]})
    for key in BAD:
        damage(path, key)
    return path


class Trainer:
    """What PretrainData asks of a trainer."""

    def __init__(self, rank: int = 0, world: int = 1, step: int = 0) -> None:
        self.global_rank, self.world_size, self.global_step = rank, world, step


def config(folder, **kwargs) -> StreamConfig:
    return StreamConfig(
        **{"shards": str(folder), "crop": [8, 8], "batch_size": 6, "workers": 0, "channels": 1, **kwargs}
    )


def train(config, run, *, rank=0, world=1, start=0, steps=6) -> list[tuple[int, str, torch.Tensor, object]]:
    """Position, key, pixels and what was replaced of each sample that the steps are given."""
    data = PretrainData(config, steps=steps, folder=run)
    data.trainer = Trainer(rank, world, start)  # pyright: ignore
    samples = []
    for batch in data.train_dataloader():
        batch = data.on_before_batch_transfer(batch, 0)
        rows = zip(
            batch["position"].tolist(), batch["key"], batch["image"].clone(), batch["replaced"], strict=True
        )
        samples += list(rows)
    return samples


def lines(run) -> list[dict]:
    return [json.loads(line) for line in (run / QUARANTINE).read_text().splitlines()]


def same(one, other) -> bool:
    return [(p, k) for p, k, *_ in one] == [(p, k) for p, k, *_ in other] and all(
        torch.equal(a[2], b[2]) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_replaced_sample_is_named_logged_once_and_written_down(folder, tmp_path, caplog, workers):
    got = train(config(folder, workers=workers), tmp_path, steps=9)
    where = {key: Shards.open(folder).find(key) for key in BAD}
    assert {line["key"] for line in lines(tmp_path)} == set(BAD) and len(lines(tmp_path)) == 2
    for line in lines(tmp_path):
        assert set(line) == {"shard", "sample", "member", "key"}
        assert line["member"] == f"{line['key']}.b2nd" and line["sample"] == where[line["key"]].ordinal
        assert line["shard"] == f"a-2d-0000{where[line['key']].shard}.tar"
    replaced = [entries for *_, entries in got if entries]
    assert len(replaced) >= 2 and {e["key"] for entries in replaced for e in entries} == set(BAD)
    assert all("checksum" in e["reason"] and str(folder) not in e["reason"] for r in replaced for e in r)
    assert not set(BAD) & {key for _, key, *_ in got}
    for key in BAD:
        assert sum(key in record.message for record in caplog.records) == 1


def test_a_restart_does_not_read_listed_samples_again_and_gives_the_same_pixels(
    folder, tmp_path, monkeypatch
):
    whole = train(config(folder), None, steps=12)
    first = train(config(folder), tmp_path, steps=7)
    attempts = []
    meta = Shards.meta

    def noting(self, ref, **how):
        found = meta(self, ref, **how)
        attempts.append(found["key"])
        return found

    monkeypatch.setattr(Shards, "meta", noting)
    rest = train(config(folder), tmp_path, start=7, steps=12)
    assert same(first + rest, whole)
    assert attempts and not set(BAD) & set(attempts)
    assert len(lines(tmp_path)) == 2
    for workers in (1, 2):
        assert same(train(config(folder, workers=workers), tmp_path, steps=12), whole)


def test_the_budget_counts_all_workers_and_all_starts(folder, tmp_path, damage):
    other = [k for k in ("a-0000", "a-0012") if damage(folder, k)]
    small = config(folder, failure_budget=len(BAD) + len(other) - 1)
    message = (
        r"^source a-2d: 4 samples cannot be read, data\.failure_budget is 3; run `medloom shards check .*`, "
        r"then `medloom shards repair .*`; last: a-2d-0000\d\.tar: member a-\d+\.b2nd: .*checksum"
    )
    with pytest.raises(ShardError, match=message) as caught:
        train(dataclasses.replace(small, workers=2), None, steps=30)
    assert "\n" not in str(caught.value)
    with pytest.raises(ShardError, match="failure_budget is 3"):
        for start in range(0, 30, 2):  # no start meets all four
            train(small, tmp_path, start=start, steps=start + 2)
    assert len(lines(tmp_path)) == 3
    with pytest.raises(ShardError, match=r"failure_budget is 2.*listed in quarantine\.jsonl"):
        train(dataclasses.replace(small, failure_budget=2), tmp_path, steps=1)
    assert train(dataclasses.replace(small, failure_budget=4), tmp_path, steps=30)


def test_ranks_share_the_file_and_the_count(folder, tmp_path):
    whole = train(config(folder), None, steps=9)
    parts = [train(config(folder), tmp_path, rank=rank, world=3, steps=9) for rank in range(3)]
    assert same(sorted((s for part in parts for s in part), key=lambda s: s[0]), whole)
    assert sorted(line["key"] for line in lines(tmp_path)) == sorted(BAD)


def _append(path, rank: int, barrier) -> None:
    owners = {f"s{n}.tar": "s" for n in range(200)}
    quarantine = Quarantine("shards", owners, 1000, path)
    barrier.wait()
    for n in range(50):
        entry = {
            "shard": f"s{4 * n + rank}.tar",
            "sample": n,
            "member": "k.b2nd",
            "key": "k" * 70,
            "reason": "x",
        }
        quarantine.collect([None, [entry]])


def test_lines_of_many_processes_do_not_mix(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    path = tmp_path / QUARANTINE
    processes = [context.Process(target=_append, args=(path, rank, barrier)) for rank in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    places = {(line["shard"], line["sample"]) for line in lines(tmp_path)}
    assert places == {(f"s{4 * n + rank}.tar", n) for n in range(50) for rank in range(4)}


def test_a_line_torn_by_a_kill_is_skipped_and_healed(tmp_path):
    path = tmp_path / QUARANTINE
    whole = {"shard": "s.tar", "sample": 1, "member": "k.b2nd", "key": "k"}
    path.write_text(json.dumps(whole) + "\n" + '{"shard": "s.tar", "sam')
    quarantine = Quarantine("shards", {"s.tar": "s"}, 5, path)
    assert len(quarantine) == 1 and quarantine.get("s.tar", 1) and not quarantine.get("s.tar", 2)
    quarantine.collect([[whole | {"sample": 2, "reason": "x"}]])
    assert len(Quarantine("shards", {"s.tar": "s"}, 5, path)) == 2
    assert len(Quarantine("shards", {"other.tar": "s"}, 0, path)) == 0  # of other shards


def test_a_damaged_description_is_named_by_its_member(folder, tmp_path):
    shards = Shards.open(folder)
    ref = shards.find("b-0002")
    handle = shards._handle(ref.shard)
    member = handle.index.members_of(ref.ordinal)[0]
    data = bytearray(handle.path.read_bytes())
    data[member.offset + 3] ^= 1
    handle.path.write_bytes(data)
    train(config(folder, sources=["b"]), tmp_path, steps=2)
    assert lines(tmp_path) == [
        {"shard": handle.path.name, "sample": 2, "member": "b-0002.json", "key": "b-0002"}
    ]


def test_crops_of_a_damaged_sample_are_replaced_together(folder):
    got = Stream(config(folder, crops_per_sample=3)).__getitems__(range(90))
    hit = [i for i in range(0, 90, 3) if got[i]["replaced"]]
    assert hit
    for i in hit:
        assert len({sample["key"] for sample in got[i : i + 3]}) == 1
        assert all(sample["replaced"] for sample in got[i : i + 3])


def test_nothing_is_written_without_damage_and_streams_travel(folder, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    train(config(folder, sources=["b"]), tmp_path, steps=3)
    assert not (tmp_path / QUARANTINE).exists() and not caplog.records
    stream = Stream(config(folder))
    again = pickle.loads(pickle.dumps(stream))
    assert [s["key"] for s in again.__getitems__(range(9))] == [
        s["key"] for s in stream.__getitems__(range(9))
    ]
