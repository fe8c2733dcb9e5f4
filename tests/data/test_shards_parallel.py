"""Jobs in processes: a job that kills its process is told from the rest, which are done all the same."""

from __future__ import annotations

import os

import pytest
from medloom.data.errors import ShardError
from medloom.data.shards.parallel import run_each


def square_or_die(number):
    if number in (2, 3):
        os._exit(9)
    return number * number


@pytest.mark.parametrize("workers", [1, 3])
def test_every_job_gives_one_result(workers):
    jobs = [0, 1, 4, 5, 6]
    results = dict(run_each(square_or_die, jobs, workers=workers, method="fork"))
    assert results == {number: job * job for number, job in enumerate(jobs)}


def test_a_job_that_kills_its_process_is_told(recwarn):
    results = dict(run_each(square_or_die, list(range(12)), workers=2, method="fork"))
    assert set(results) == set(range(12))
    assert {n for n, result in results.items() if isinstance(result, ShardError)} == {2, 3}
    assert all(results[n] == n * n for n in range(12) if n not in (2, 3))


def fail(number):
    raise ValueError(f"job {number}")


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_job_raises_is_raised(workers):
    with pytest.raises(ValueError, match="job"):
        list(run_each(fail, [1, 2], workers=workers, method="fork"))
