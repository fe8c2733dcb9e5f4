"""Steps read positions by arithmetic: equal parts for every rank, one class a step, no gap and no repeat."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medloom.data.errors import ConfigError
from medloom.data.stream.steps import PositionBatches, StepPlan, rank_share


@given(step=st.integers(0, 10**9), global_batch=st.integers(1, 4096), world=st.integers(1, 300))
def test_ranks_partition_every_global_batch(step, global_batch, world):
    batch = StepPlan(batch_sizes=(global_batch,)).positions(step)
    assert batch == range(step * global_batch, (step + 1) * global_batch)
    parts = [rank_share(batch, rank, world) for rank in range(world)]
    assert [p for part in parts for p in part] == list(batch)
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1
    if global_batch % world == 0:
        assert sizes == {global_batch // world}


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    shares=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
    changes=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=4),
)
def test_each_class_goes_on_without_a_gap_or_a_repeat_whatever_its_batch_sizes_were(sizes, shares, changes):
    k = len(sizes)
    plan, step, seen = StepPlan(batch_sizes=tuple(sizes), shares=tuple(shares[:k])), 0, [[] for _ in sizes]
    kinds = []
    for more, add in [*changes, (10, 1)]:
        for step in range(step, step + more):  # noqa: B020
            batch = plan.positions(step)
            kind = plan.class_of(step)
            assert {p % k for p in batch} == {kind} and len(batch) == plan.batch_sizes[kind]
            seen[kind] += [p // k for p in batch]
            kinds.append(kind)
        step = len(kinds)
        assert plan.consumed(step) == [len(s) for s in seen] and plan.samples(step) == sum(map(len, seen))
        plan = StepPlan(
            batch_sizes=tuple(s + add for s in sizes), shares=plan.shares
        ).resumed(step, plan.consumed(step))  # fmt: skip
    assert all(s == list(range(len(s))) for s in seen)
    taken = np.cumsum(np.asarray(kinds)[:, None] == np.arange(k), axis=0)
    due = np.arange(1, len(kinds) + 1)[:, None] * np.asarray(shares[:k]) / sum(shares[:k])
    assert np.abs(taken - due).max() < 1.1  # one, and the rounding of the shares


def test_a_thousand_random_layouts_have_equal_steps_on_every_rank():
    """Uneven shards cannot hang a rank: nothing but the step decides how many batches a rank has."""
    rng = np.random.default_rng(0)
    for _ in range(1000):
        world, accumulate = int(rng.integers(1, 33)), int(rng.integers(1, 5))
        k = int(rng.integers(1, 4))
        sizes = tuple(int(n) * world * accumulate for n in rng.integers(1, 5, k))
        plan = StepPlan(batch_sizes=sizes, shares=tuple(rng.uniform(0.1, 5, k)))
        first, last = sorted(rng.integers(0, 10**6, 2).tolist())
        last = min(last, first + int(rng.integers(0, 4)))
        span = {"start_step": first, "steps": last, "accumulate": accumulate}
        ranks = [
            list(PositionBatches(plan, rank=r, world=world, **span))
            for r in range(world)
        ]  # fmt: skip
        assert {len(batches) for batches in ranks} == {(last - first) * accumulate}
        for number in range((last - first) * accumulate):
            micro = [batches[number] for batches in ranks]
            assert len({len(batch) for batch in micro}) == 1
            assert len({position % k for batch in micro for position in batch}) == 1
        everything = sorted(p for batches in ranks for batch in batches for p in batch)
        assert everything == sorted(p for step in range(first, last) for p in plan.positions(step))


def test_steps_until_every_class_has_its_steps():
    plan = StepPlan(batch_sizes=(4, 4), shares=(3.0, 1.0))
    end = plan.steps_until([30, 5])
    assert plan.steps_by_class(end)[0] >= 30 and plan.steps_by_class(end - 1)[0] < 30
    assert StepPlan(batch_sizes=(4,)).steps_until([7]) == 7


def test_a_batch_that_does_not_divide_is_refused_with_a_number_that_does():
    with pytest.raises(ConfigError, match=r"48 does not divide by 5 ranks x 2 micro-batches: set .*=50"):
        PositionBatches(StepPlan(batch_sizes=(48,)), rank=0, world=5, start_step=0, steps=1, accumulate=2)
    with pytest.raises(ConfigError, match="rank 2 does not exist among 2"):
        PositionBatches(StepPlan(batch_sizes=(4,)), rank=2, world=2, start_step=0, steps=1)
