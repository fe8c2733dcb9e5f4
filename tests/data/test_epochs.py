"""What an epoch is: each sample exactly once, each at least once, or none at all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medloom.data.errors import ConfigError
from medloom.data.stream.order import Order, SourceSize
from medloom.data.stream.steps import StepPlan, rank_share

SHARDS = st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(lambda counts: sum(counts) > 0)
SOURCES = st.lists(SHARDS, min_size=1, max_size=6).map(
    lambda all_counts: [SourceSize(f"s{i}", tuple(counts)) for i, counts in enumerate(all_counts)]
)


def samples(order: Order, positions) -> list[tuple[int, int, int]]:
    found = order.locate(positions)
    return list(zip(found.source.tolist(), found.shard.tolist(), found.ordinal.tolist(), strict=True))


def everything(sources) -> set[tuple[int, int, int]]:
    return {
        (i, shard, ordinal)
        for i, source in enumerate(sources)
        for shard, count in enumerate(source.shard_counts)
        for ordinal in range(count)
    }


@settings(deadline=None, max_examples=60)
@given(
    sources=SOURCES,
    window=st.none() | st.integers(1, 4),
    seed=st.integers(),
    batch=st.integers(1, 40),
    world=st.integers(1, 7),
    epochs=st.integers(1, 3),
)
def test_a_strict_epoch_reads_each_sample_exactly_once_for_any_batch_and_ranks(
    sources, window, seed, batch, world, epochs
):
    order = Order(sources, seed=seed, alpha=1.0, window=window, epoch="strict")
    length = order.epoch_samples
    assert length == sum(source.count for source in sources)
    plan, read = StepPlan(batch_sizes=(batch,)), []
    for step in range(-(-epochs * length // batch)):
        for rank in range(world):
            read += samples(order, rank_share(plan.positions(step), rank, world))
    for epoch in range(epochs):
        seen = read[epoch * length : (epoch + 1) * length]
        assert len(set(seen)) == length and set(seen) == everything(sources)
    assert order.counts(epochs * length).tolist() == [epochs * source.count for source in sources]


@settings(deadline=None, max_examples=60)
@given(sources=SOURCES, alpha=st.floats(0, 1), window=st.none() | st.integers(1, 4), epochs=st.integers(1, 3))
def test_a_cover_epoch_is_the_shortest_that_sees_every_sample(sources, alpha, window, epochs):
    order = Order(sources, seed=1, alpha=alpha, window=window, epoch="cover")
    length = order.epoch_samples
    assert length is not None and length >= sum(source.count for source in sources)
    for epoch in range(epochs):
        seen = samples(order, range(epoch * length, (epoch + 1) * length))
        assert set(seen) == everything(sources)
        assert set(seen[:-1]) != everything(sources)
    found = order.locate(range(epochs * length))
    passes = set(zip((np.arange(epochs * length) // length).tolist(), found.source, found.epoch, strict=True))
    assert len({(source, turn) for _, source, turn in passes}) == len(passes), "a permutation came back"
    mine = found.source
    assert order.counts(epochs * length).tolist() == np.bincount(mine, minlength=len(sources)).tolist()
    plain = Order(sources, seed=1, alpha=alpha, window=window)
    assert samples(plain, range(length)) == samples(order, range(length))


@settings(deadline=None, max_examples=40)
@given(
    sources=SOURCES,
    crops=st.integers(1, 5),
    epoch=st.sampled_from(["steps", "strict", "cover"]),
    end=st.integers(0, 400),
)
def test_crops_of_a_sample_are_neighbours_and_counted(sources, crops, epoch, end):
    kwargs = {"seed": 2, "alpha": 1.0, "epoch": epoch}
    single, order = Order(sources, **kwargs), Order(sources, **kwargs, crops=crops)
    assert samples(order, range(end)) == [samples(single, [p // crops])[0] for p in range(end)]
    taken = np.bincount(order.locate(range(end)).source, minlength=len(sources))
    assert order.counts(end).tolist() == taken.tolist()
    assert (order.epoch_samples or 0) == (single.epoch_samples or 0) * crops
    assert crops == 1 or order.fingerprint != single.fingerprint


def test_only_steps_has_no_epoch_and_each_kind_is_an_order_of_its_own():
    sources = [SourceSize("a", (9,)), SourceSize("b", (4, 3))]
    orders = [Order(sources, seed=0, alpha=1.0, epoch=epoch) for epoch in ("steps", "strict", "cover")]
    assert orders[0].epoch_samples is None
    assert len({order.fingerprint for order in orders}) == 3


def test_a_mix_that_contradicts_a_strict_epoch_is_refused_with_the_mend():
    sources = [SourceSize("a", (9,)), SourceSize("b", (4,))]
    with pytest.raises(ConfigError, match=r"data\.alpha 0\.5 repeats .* set data\.alpha=1, or .*cover"):
        Order(sources, seed=0, epoch="strict")
    with pytest.raises(ConfigError, match=r"data\.weights repeat .* leave data\.weights out"):
        Order(sources, seed=0, alpha=1.0, weights={"a": 2.0}, epoch="strict")
    with pytest.raises(ConfigError, match="did you mean strict"):
        Order(sources, seed=0, epoch="stict")
    assert Order(sources[:1], seed=0, epoch="strict").epoch_samples == 9
    assert Order(sources, seed=0, alpha=1.0, weights={"a": 2.0, "b": 2.0}, epoch="strict").epoch_samples == 13


def test_the_log_says_how_often_a_small_source_is_repeated():
    order = Order([SourceSize("tiny", (10,)), SourceSize("large", (1000,))], seed=0, alpha=0.0, epoch="cover")
    tiny, large = order.describe(order.epoch_samples or 0)
    assert "tiny: 10 samples" in tiny and "alpha 0 < 1 repeats it 100 times" in tiny
    assert "repeats" not in large
    even = Order([SourceSize("tiny", (10,)), SourceSize("large", (1000,))], seed=0, alpha=1.0)
    assert not [line for line in even.describe(5000) if "repeats" in line]
