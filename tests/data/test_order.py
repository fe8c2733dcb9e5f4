"""The order is a pure function of the position, fair to its sources and the same for any number of ranks."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medloom.data.errors import ConfigError
from medloom.data.stream.order import Order, SourceSize, permute
from medloom.data.stream.steps import StepPlan, rank_share

SHARDS = st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(lambda counts: sum(counts) > 0)
SOURCES = st.lists(SHARDS, min_size=1, max_size=6).map(
    lambda all_counts: [SourceSize(f"s{i}", tuple(counts)) for i, counts in enumerate(all_counts)]
)


def order(*counts, **kwargs) -> Order:
    sources = [SourceSize(f"s{i}", tuple(c)) for i, c in enumerate(counts)]
    return Order(sources, **{"seed": 0, **kwargs})


@settings(deadline=None, max_examples=60)
@given(counts=SHARDS, seed=st.integers(), window=st.none() | st.integers(1, 9), epochs=st.integers(1, 4))
def test_every_epoch_of_a_source_is_a_permutation(counts, seed, window, epochs):
    all_samples = {(s, o) for s, n in enumerate(counts) for o in range(n)}
    found = order(counts, seed=seed, window=window).locate(range(epochs * sum(counts)))
    for epoch in range(epochs):
        mine = found.epoch == epoch
        seen = list(zip(found.shard[mine].tolist(), found.ordinal[mine].tolist(), strict=True))
        assert len(seen) == len(all_samples)
        assert set(seen) == all_samples


@settings(deadline=None, max_examples=60)
@given(
    sources=SOURCES,
    alpha=st.floats(0, 1),
    window=st.none() | st.integers(1, 9),
    positions=st.lists(st.integers(0, 10**12), min_size=1, max_size=30),
)
def test_any_position_restarts_with_the_same_answer(sources, alpha, window, positions):
    batch = Order(sources, seed=1, alpha=alpha, window=window).locate(positions)
    for i, position in enumerate(positions):
        alone = Order(sources, seed=1, alpha=alpha, window=window).locate([position])
        assert [int(a[i]) for a in batch] == [int(a[0]) for a in alone]


def test_mixed_sources_are_each_read_through_before_they_repeat():
    mixed = order((3, 4), (50,), (1,), alpha=0.5)
    found = mixed.locate(range(3000))
    for source, size in enumerate((7, 50, 1)):
        mine = found.source == source
        keys = list(zip(found.epoch[mine], found.shard[mine], found.ordinal[mine], strict=True))
        assert len(set(keys)) == len(keys)
        assert all(len({k for k in keys if k[0] == e}) == size for e in range(int(found.epoch[mine].max())))
        assert np.all(np.diff(found.epoch[mine]) >= 0)


@settings(deadline=None, max_examples=25)
@given(sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=40), alpha=st.floats(0, 1))
def test_prefix_counts_stay_within_one_sample_of_their_due(sizes, alpha):
    mixed = order(*[(n,) for n in sizes], alpha=alpha)
    source = mixed.locate(range(9000)).source
    taken = np.cumsum(source[:, None] == np.arange(len(sizes)), axis=0)
    due = np.arange(1, 9001)[:, None] * mixed.probabilities
    assert np.abs(taken - due).max() < 1
    assert np.array_equal(taken[-1], mixed.counts(9000))


def test_probabilities_follow_alpha_and_weights():
    wanted = np.sqrt([100, 400, 2500])
    assert order((100,), (400,), (2500,), alpha=0.5).probabilities == pytest.approx(
        wanted / wanted.sum(), rel=0.025
    )
    assert order((100,), (400,), alpha=1).probabilities == pytest.approx([0.2, 0.8], rel=0.025)
    assert order((100,), (400,), alpha=0).probabilities == pytest.approx([0.5, 0.5])
    assert order((100,), (400,), alpha=0, weights={"s0": 3}).probabilities == pytest.approx([0.75, 0.25])


def test_a_source_far_below_one_turn_a_period_is_still_read():
    mixed = order((1,), (10**9,), alpha=1)
    assert 0 < mixed.probabilities[0] < 1e-4


def test_eight_then_three_then_sixteen_ranks_train_on_the_same_global_batches():
    mixed = order((30, 30), (7, 9, 5), (90,), alpha=0.5, window=1)
    undisturbed = mixed.locate(range(12 * 48))
    elastic = []
    for step, world in enumerate([8] * 4 + [3] * 4 + [16] * 4):
        for rank in range(world):
            again = order((30, 30), (7, 9, 5), (90,), alpha=0.5, window=1)
            mine = rank_share(StepPlan(batch_sizes=(48,)).positions(step), rank, world)
            elastic.append(np.stack(again.locate(mine)))
    assert np.array_equal(np.concatenate(elastic, axis=1), np.stack(undisturbed))


def test_seed_source_and_epoch_change_the_order():
    def samples(first, **kwargs):
        found = order((40, 40), **kwargs).locate(range(first, first + 80))
        return (found.shard * 40 + found.ordinal).tolist()

    assert samples(0) == samples(0)
    assert samples(0) != samples(0, seed=1)
    assert samples(0) != samples(80)
    assert samples(0) != list(range(80))
    twins = order((40,), (40,), alpha=0).locate(range(80))
    assert twins.ordinal[twins.source == 0].tolist() != twins.ordinal[twins.source == 1].tolist()


def test_window_bounds_the_shards_that_are_open_together():
    found = order((25,) * 12, window=3).locate(range(300))
    for start in range(0, 300, 75):
        assert len(np.unique(found.shard[start : start + 75])) == 3
    all_open = order((25,) * 12).locate(range(64))
    assert len(np.unique(all_open.shard)) == 12


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 64, 65, 1000])
def test_permute_is_a_permutation_for_every_key(size):
    for key in range(5):
        keys = np.full(size, key, dtype=np.uint64)
        assert sorted(permute(np.arange(size), size, keys)) == list(range(size))


@pytest.mark.parametrize("size", [3, 5, 16, 40])
def test_permute_sends_every_index_everywhere(size):
    """Over 4,000 keys the counts of images and of pairs lie within six standard errors of chance."""
    keys = mixed_keys(4000)
    images = np.stack([permute(np.full(4000, i), size, keys) for i in range(size)])  # [size, keys]
    expected, error = 4000 / size, 6 * np.sqrt(4000 / size * (1 - 1 / size))
    for row in images:
        assert np.abs(np.bincount(row, minlength=size) - expected).max() < error
    followed = ((images[1] - images[0]) % size == 1).sum()  # neighbours stay neighbours as often as chance
    assert abs(followed - 4000 / (size - 1)) < 6 * np.sqrt(4000 / (size - 1))


def mixed_keys(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**63, n).astype(np.uint64)


def test_refusals_name_the_key():
    with pytest.raises(ConfigError, match="no source"):
        Order([], seed=0)
    with pytest.raises(ConfigError, match="s1 holds no samples"):
        order((1,), (0,))
    with pytest.raises(ConfigError, match="did you mean s1"):
        order((1,), (1,), weights={"s11": 2})
    with pytest.raises(ConfigError, match="alpha"):
        order((1,), alpha=1.5)
    with pytest.raises(ConfigError, match="window"):
        order((1,), window=0)
    with pytest.raises(ValueError, match="negative"):
        order((1,)).locate([-1])


def test_describe_tells_the_passes_through_each_source():
    lines = order((10,), (1000,), alpha=0).describe(200)
    assert "s0: 10 samples, 50.00 %" in lines[0] and "10.00 passes" in lines[0]
    assert "0.10 passes" in lines[1]


def test_the_order_of_earlier_versions_is_kept():
    """Checkpoints of earlier runs go on with the samples that they would have had."""
    sources = [SourceSize("a", (30, 30)), SourceSize("b", (7, 9, 5)), SourceSize("c", (90,))]
    for kwargs, fingerprint, first, late in (
        ({"seed": 0}, "d60fd07420ffb7b2", "98c77a5b624c89d7", "59c98f376be6b158"),
        ({"seed": 5, "alpha": 0.25, "window": 1}, "5e159eb8581a2903", "9ed052e40e138dd4", "a89c54bc604e5e1d"),
        (
            {"seed": 2**40, "alpha": 1.0, "weights": {"b": 2.0}},
            "c432f888e6c679b9", "6ec9c7d21fa4b6ac", "53604614679a04d9",
        ),
    ):  # fmt: skip
        before = Order(sources, **kwargs)
        assert before.fingerprint == fingerprint
        for positions, digest in ((range(500), first), (range(10**9, 10**9 + 50), late)):
            found = np.stack(before.locate(positions)).tobytes()
            assert hashlib.blake2b(found, digest_size=8).hexdigest() == digest
