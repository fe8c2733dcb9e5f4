"""torchrun on two hosts: equal to one process; a link that goes down ends in one line, and it resumes."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from medloom.pretrain.fault_tolerance.checkpoint import LAST
from medloom.pretrain.tracking import METRICS, read_rows

from tests.cluster.hosts import Hosts, missing, torchrun

pytestmark = [pytest.mark.slow, pytest.mark.hosts, pytest.mark.timeout(900)]

AGENT = "medloom.pretrain.cluster.torchrun"


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with Hosts() as pair:
        yield pair


def start(
    hosts: Hosts, folder: Path, recipe: Path, *overrides: str, module: str
) -> list[subprocess.Popen[str]]:
    return [
        hosts.start(host, torchrun(host, recipe, *overrides, module=module), folder / f"host{host}.log")
        for host in range(2)
    ]


def logs(folder: Path) -> list[str]:
    """What the hosts said, without line breaks."""
    return [" ".join((folder / f"host{host}.log").read_text().split()) for host in range(2)]


def rows_reach(out: Path, step: int, processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 240
    while not any(row["step"] >= step for row in read_rows(out / METRICS)):
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.1)


def step_of(out: Path) -> int:
    return int(torch.load(out / LAST, weights_only=True)["medloom"]["step"])


def test_two_hosts_take_the_steps_of_one_process(
    hosts: Hosts, recipe: Callable[..., Path], tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    from medloom.pretrain.run import pretrain

    options = ("trainer.log_every=1", "trainer.steps=3")
    single = read_rows(pretrain(tiny_config(tmp_path / "one", *options)) / METRICS)
    path = recipe(tmp_path / "two", *options)
    started = start(hosts, tmp_path, path, module="torch.distributed.run")
    assert [process.wait(240) for process in started] == [0, 0], logs(tmp_path)
    both = read_rows(tmp_path / "two" / METRICS)
    assert [row["step"] for row in both] == [1, 2, 3]
    assert both[0]["loss"] == pytest.approx(single[0]["loss"], rel=1e-5)
    assert both[0]["grad_norm"] == pytest.approx(single[0]["grad_norm"], rel=1e-4)
    assert both[2]["loss"] == pytest.approx(single[2]["loss"], rel=1e-3)


def test_a_link_that_goes_down_ends_in_one_line_and_a_clean_resume(
    hosts: Hosts, recipe: Callable[..., Path], rows_of: Callable[..., Any], tmp_path: Path
) -> None:
    options = ("trainer.log_every=2", "trainer.steps=120", "trainer.checkpoint_every_steps=10",
               "trainer.timeout_minutes=0.25")  # fmt: skip
    whole = recipe(tmp_path / "whole", *options)
    undisturbed = start(hosts, tmp_path, whole, module=AGENT)
    assert [process.wait(300) for process in undisturbed] == [0, 0], logs(tmp_path)

    path = recipe(tmp_path / "cut", *options)
    started = start(hosts, tmp_path, path, module=AGENT)
    rows_reach(tmp_path / "cut", 20, started)
    hosts.cut(1)
    begin = time.monotonic()
    assert [process.wait(200) for process in started] == [4, 4], logs(tmp_path)
    assert time.monotonic() - begin < 5 * 15  # the timeout is 15 s; what is left is leaving
    for said in logs(tmp_path):
        assert "another rank has not answered for 0.25 minutes (trainer.timeout_minutes)" in said
        assert "start again with resume=true" in said
        assert "Traceback" not in said
    assert 20 <= step_of(tmp_path / "cut") < 120

    hosts.mend(1)
    again = start(hosts, tmp_path, path, "resume=true", module=AGENT)
    assert [process.wait(300) for process in again] == [0, 0], logs(tmp_path)
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_agent_stops_both_hosts_with_status_3(
    hosts: Hosts, recipe: Callable[..., Path], tmp_path: Path, number: signal.Signals
) -> None:
    path = recipe(tmp_path / "run", "trainer.log_every=1", "trainer.steps=100000",
                  "trainer.checkpoint_every_steps=100000")  # fmt: skip
    started = start(hosts, tmp_path, path, module=AGENT)
    rows_reach(tmp_path / "run", 3, started)
    started[1].send_signal(number)  # to one host of the two: `ip netns exec` has become the agent
    assert [process.wait(120) for process in started] == [3, 3], logs(tmp_path)
    assert "a signal on another rank: checkpoint" in logs(tmp_path)[0]
    assert all("Traceback" not in said for said in logs(tmp_path))
    assert step_of(tmp_path / "run") >= 3
