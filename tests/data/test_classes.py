"""One run of several shapes: a step has one shape on all ranks, and no class disturbs another."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from medloom.data.config import structured, to_dict
from medloom.data.errors import CheckpointError, ConfigError
from medloom.data.loader.loader import loader
from medloom.data.shards.reader import Shards
from medloom.data.stream.config import ShapeClass, StreamConfig
from medloom.data.stream.steps import StepPlan
from medloom.data.stream.stream import Stream


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_layout):
    layout = {"a-2d": [5, 4], "b-2d": [3], "v-3d": [4, 3]}
    return make_layout(tmp_path_factory.mktemp("classes"), layout)


def mixed(folder, **kwargs) -> StreamConfig:
    classes = [
        ShapeClass(ndim=2, crop=[8, 8], share=2.0, channels=1),
        ShapeClass(ndim=3, crop=[4, 6, 6], batch_size=4, snap=1),
        ShapeClass(ndim=2, crop=[6, 4], sources=["a"], channels=1),
    ]
    return StreamConfig(
        **{"shards": str(folder), "batch_size": 6, "workers": 0, "classes": classes, **kwargs}
    )


def batches(
    config: StreamConfig, *, world: int = 1, steps: int = 24, plan=None, start: int = 0
) -> list[dict]:
    """The global batch of each step, put together from the ranks."""
    parts = [
        list(loader(Stream(config), rank=r, world=world, start_step=start, steps=steps, plan=plan))
        for r in range(world)
    ]
    return [
        {name: torch.cat([part[name] for part in step]) for name in ("image", "position", "spacing")}
        | {"key": [key for part in step for key in part["key"]]}
        for step in zip(*parts, strict=True)
    ]


def test_a_step_has_one_shape_on_all_ranks_whatever_ranks_and_workers(folder):
    config = mixed(folder)
    whole = batches(config)
    shapes = {0: (6, 1, 8, 8), 1: (4, 1, 4, 6, 6), 2: (6, 1, 6, 4)}
    plan = StepPlan.of(config)
    for step, batch in enumerate(whole):
        kind = plan.class_of(step)
        assert tuple(batch["image"].shape) == shapes[kind]
        assert set((batch["position"] % 3).tolist()) == {kind}
    assert [plan.class_of(step) for step in range(24)].count(0) == 12
    for world, workers in ((2, 0), (2, 1), (1, 2)):
        for one, other in zip(whole, batches(mixed(folder, workers=workers), world=world), strict=True):
            assert one["key"] == other["key"] and torch.equal(one["image"], other["image"])


def test_no_two_classes_share_a_position_or_an_order(folder):
    stream = Stream(mixed(folder))
    seen = [p for step in range(40) for p in stream.plan.positions(step)]
    assert len(set(seen)) == len(seen)
    flat = dataclasses.replace(stream.config.each()[0], sources=["a"])
    twins = Stream(dataclasses.replace(mixed(folder), classes=[
        ShapeClass(ndim=2, crop=[8, 8], channels=1, sources=["a"]),
        ShapeClass(ndim=2, crop=[8, 8], channels=1, sources=["a"]),
    ]))  # fmt: skip
    first, second = (twins.__getitems__(range(kind, 72, 2)) for kind in (0, 1))
    assert [s["key"] for s in first] != [s["key"] for s in second]
    assert not {s["image"].tobytes() for s in first} & {s["image"].tobytes() for s in second}
    twins.classes[1].order = twins.classes[0].order  # even where the sample is the same, the crop is not
    second = twins.__getitems__(range(1, 72, 2))
    assert [s["key"] for s in first] == [s["key"] for s in second]
    assert not {s["image"].tobytes() for s in first} & {s["image"].tobytes() for s in second}
    assert {s["key"] for s in first} == {s["key"] for s in second} == {
        s["key"] for s in Stream(flat).__getitems__(range(9))
    }  # fmt: skip


def test_one_class_is_a_run_without_classes(folder):
    plain = StreamConfig(shards=str(folder), ndim=3, crop=[4, 6, 6], batch_size=4, workers=0, snap=1)
    listed = StreamConfig(
        shards=str(folder), batch_size=4, workers=0, classes=[ShapeClass(ndim=3, crop=[4, 6, 6], snap=1)]
    )
    one, other = Stream(plain), Stream(listed)
    assert one.state([12]) == other.state([12]) and one.state([12])["consumed"] == 12
    assert one.plan.positions(7) == other.plan.positions(7) == range(28, 32)
    for a, b in zip(one.__getitems__(range(20)), other.__getitems__(range(20)), strict=True):
        assert a["position"] == b["position"] and np.array_equal(a["image"], b["image"])


def test_the_state_is_small_and_goes_on_with_other_batch_sizes(folder):
    config = mixed(folder)
    stream = Stream(config)
    consumed = stream.plan.consumed(11)
    state = json.loads(json.dumps(stream.state(consumed)))
    changed = mixed(folder)
    changed.classes[1].batch_size, changed.batch_size = 2, 12
    again = Stream(changed)
    plan = again.plan.resumed(11, again.resume(state))
    assert plan.consumed(11) == consumed
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for step in range(11):
        seen[stream.plan.class_of(step)] += stream.plan.positions(step)
    for batch in batches(changed, start=11, steps=30, plan=plan):
        seen[int(batch["position"][0]) % 3] += batch["position"].tolist()
    assert all(at == list(range(kind, kind + 3 * len(at), 3)) for kind, at in seen.items())
    four = StreamConfig(
        shards=str(folder), seed=2**62, alpha=0.123456789,
        classes=[ShapeClass(ndim=3, crop=[4, 6, 6 + i]) for i in range(4)],
    )  # fmt: skip
    assert len(json.dumps(Stream(four).state([10**12] * 4) | {"step": 10**8})) < 200 + 20  # a 62-bit seed
    four.seed = 0
    assert len(json.dumps(Stream(four).state([10**12] * 4) | {"step": 10**8})) <= 200


def test_a_state_of_other_shares_or_classes_is_refused(folder):
    state = Stream(mixed(folder)).state([6, 4, 6])
    shares, fewer = mixed(folder), mixed(folder)
    shares.classes[0].share, fewer.classes = 1.0, fewer.classes[:2]
    for changed in (shares, fewer):
        with pytest.raises(CheckpointError, match="data order was"):
            Stream(changed).resume(state)


def test_epochs_become_the_steps_in_which_every_class_has_them(folder):
    stream = Stream(mixed(folder, epoch="strict", alpha=1.0))
    steps = stream.steps_for(2)
    consumed, before = stream.plan.consumed(steps), stream.plan.consumed(steps - 1)
    lengths = [12, 7, 9]
    assert [part.order.epoch_samples for part in stream.classes] == lengths
    assert all(n >= 2 * length for n, length in zip(consumed, lengths, strict=True))
    assert any(n < 2 * length for n, length in zip(before, lengths, strict=True))
    lines = stream.describe(steps)
    assert any("class 1 (4×6×6)" in line and "epochs (strict) of 7" in line for line in lines)
    with pytest.raises(ConfigError, match=r"data\.epoch is steps: choose data\.epoch=strict"):
        Stream(mixed(folder)).steps_for(2)


def test_crops_of_one_sample_are_neighbours_with_one_metadata_read(folder, monkeypatch):
    config = StreamConfig(
        shards=str(folder), ndim=3, crop=[4, 6, 6], batch_size=6, workers=0, snap=1, crops_per_sample=3
    )
    stream, reads = Stream(config), []
    meta = Shards.meta

    def counted(self, ref, **how):
        reads.append(ref)
        return meta(self, ref, **how)

    monkeypatch.setattr(Shards, "meta", counted)
    got = stream.__getitems__(range(21))
    assert len(reads) == 7  # one epoch: each volume once
    keys = [sample["key"] for sample in got]
    assert all(len(set(keys[i : i + 3])) == 1 for i in range(0, 21, 3)) and len(set(keys)) == 7
    assert len({(s["key"], s["image"].tobytes()) for s in got}) > 16  # origins are drawn; a few agree
    for world in (1, 2, 3):
        parts = batches(config, world=world, steps=4)
        assert [k for b in parts for k in b["key"]][:21] == keys
        assert torch.equal(
            torch.cat([b["image"] for b in parts])[:21], torch.from_numpy(np.stack([s["image"] for s in got]))
        )


def test_classes_are_checked_each_and_against_each_other(folder):
    def refused(message: str, **changes) -> None:
        config = mixed(folder)
        for name, value in changes.items():
            setattr(config.classes[1], name, value)
        with pytest.raises(ConfigError, match=message):
            Stream(config)

    refused(r"classes\[1\]: data.crop \[8, 8\] is no size in 3D", crop=[8, 8])
    refused(r"classes\[1\]\.share is 0", share=0.0)
    refused("data.sources names 'w'", sources=["w"])
    colour = mixed(folder)
    colour.classes[0].channels, colour.classes[2].channels = 2, 3
    with pytest.raises(ConfigError, match=r"classes\[0\]: 2 channels, another class has 3"):
        Stream(colour)


def test_classes_are_read_from_yaml_and_inherit_the_section(folder):
    values = to_dict(mixed(folder, foreground=0.25)) | {"ndim": 3, "crop": [4, 4, 4]}
    values["classes"] = [{"share": 3, "foreground": 1.0}, {"ndim": 2, "crop": [8, 8], "channels": 1}]
    config = structured(StreamConfig, values)
    config.check()
    first, second = config.each()
    assert (first.ndim, first.crop, first.foreground, first.batch_size) == (3, [4, 4, 4], 1.0, 6)
    assert (second.ndim, second.crop, second.foreground) == (2, [8, 8], 0.25)
    assert config.shares == (3.0, 1.0) and config.step_samples == 6
    with pytest.raises(ConfigError, match="crp"):
        structured(StreamConfig, {"classes": [{"crp": [1, 1]}]})
