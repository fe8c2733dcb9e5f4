"""Turns are dealt fairly, in closed form, and can be found again from either side."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medloom.data.stream.mixing import Parts, Turns, deal

COUNTS = st.lists(st.integers(1, 80), min_size=1, max_size=30)
WANTED = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20)


@settings(deadline=None)
@given(shares=st.lists(st.integers(1, 60), min_size=2, max_size=30))
def test_turns_meet_the_bound_of_the_chairman_problem(shares):
    turns = deal(shares)
    taken = np.cumsum(turns[:, None] == np.arange(len(shares)), axis=0)
    due = np.arange(1, len(turns) + 1)[:, None] * np.asarray(shares) / sum(shares)
    assert np.abs(taken - due).max() <= 1 - 1 / (2 * len(shares) - 2) + 1e-9


@settings(deadline=None, max_examples=30)
@given(wanted=WANTED, start=st.integers(0, 10**12))
def test_turns_count_what_they_deal_from_any_place(wanted, start):
    turns = Turns(wanted)
    who, had = turns.at(np.arange(start, start + 300))
    before = turns.counts(start)
    for i in range(len(wanted)):
        assert had[who == i].tolist() == list(range(before[i], before[i] + (who == i).sum()))
    assert np.array_equal(turns.counts(start + 300), before + np.bincount(who, minlength=len(wanted)))


@settings(deadline=None, max_examples=30)
@given(wanted=WANTED, counts=st.data())
def test_reach_is_the_first_turn_that_gives_everybody_enough(wanted, counts):
    turns = Turns(wanted)
    k = len(wanted)
    least = counts.draw(st.lists(st.integers(0, 10**6), min_size=k, max_size=k))
    end = turns.reach(least)
    assert (turns.counts(end) >= least).all()
    assert end == 0 or (turns.counts(end - 1) < least).any()


@settings(deadline=None)
@given(counts=COUNTS)
def test_parts_deal_each_count_exactly_once_through_and_nearly_evenly(counts):
    parts = Parts(counts)
    who, had = parts.at(np.arange(sum(counts)))
    assert np.bincount(who, minlength=len(counts)).tolist() == counts
    for i, count in enumerate(counts):
        assert had[who == i].tolist() == list(range(count))
    taken = np.cumsum(who[:, None] == np.arange(len(counts)), axis=0)
    due = np.arange(1, sum(counts) + 1)[:, None] * parts.probabilities
    assert np.abs(taken - due).max() < 1.7
    for turn in (0, sum(counts) // 3, sum(counts)):
        assert parts.counts(turn).tolist() == np.bincount(who[:turn], minlength=len(counts)).tolist()


def test_parts_of_ten_million_need_no_table():
    counts = np.random.default_rng(0).integers(1, 500_000, 40)
    parts = Parts(counts)
    at = np.random.default_rng(1).integers(0, parts.total, 2000)
    who, had = parts.at(at)
    assert ((had >= 0) & (had < counts[who])).all()
    again = parts.at(at[:1])
    assert (int(again[0][0]), int(again[1][0])) == (int(who[0]), int(had[0]))
    assert sum(array.nbytes for array in vars(parts).values() if isinstance(array, np.ndarray)) < 5000
    with pytest.raises(ValueError, match="2\\^31"):
        Parts([2**31, 1])
