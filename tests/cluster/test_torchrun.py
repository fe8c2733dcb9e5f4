"""The agent that hands signals and exit statuses on, and the line that a lost rank leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from medloom.data.errors import RankError
from medloom.pretrain.cluster.peers import lost_rank, watched
from medloom.pretrain.cluster.torchrun import combined

# A worker that says it is there, and stops with status 3 as late after SIGTERM as a slow disk makes it.
WORKER = """
import os, signal, sys, time
from pathlib import Path
folder, rank = Path(sys.argv[1]), os.environ["RANK"]
heard = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: heard.append(signal.Signals(number).name))
if sys.argv[2] != "wait":
    sys.exit(int(sys.argv[2]) if rank == "1" else 0)
(folder / f"there-{rank}").touch()
while not heard:
    time.sleep(0.05)
time.sleep(0.5)
(folder / f"heard-{rank}").write_text(heard[0])
sys.exit(3)
"""


def agent(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    program = folder / "worker.py"
    program.write_text(WORKER)
    module = ["-m", "medloom.pretrain.cluster.torchrun", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *module, str(program), str(folder), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
    )


@pytest.mark.parametrize(
    ("number", "heard"),
    [(signal.SIGTERM, "SIGTERM"), (signal.SIGUSR1, "SIGUSR1"), (signal.SIGINT, "SIGTERM")],
)
def test_workers_hear_of_a_signal_and_take_their_time(
    tmp_path: Path, number: signal.Signals, heard: str
) -> None:
    process = agent(tmp_path, "wait")
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("there-*"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 3, said
    assert {path.name: path.read_text() for path in tmp_path.glob("heard-*")} == {
        "heard-0": heard,
        "heard-1": heard,
    }
    assert "Traceback" not in said and "ChildFailedError" not in said


@pytest.mark.parametrize("status", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 4))])
def test_the_status_of_a_worker_is_handed_on(tmp_path: Path, status: int) -> None:
    process = agent(tmp_path, str(status))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == status, said


def test_several_statuses_make_one() -> None:
    assert [combined(codes) for codes in ([3, 3], [2], [-9, 4], [1, 4], [0, 3], [])] == [3, 2, 137, 1, 3, 0]
    assert [combined(codes) for codes in ([3, -15], [-15, -15], [-15, 4], [-15, -9])] == [3, 143, 4, 137]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 15000ms for recv operation to complete",
         "has not answered for 2 minutes"),
        ("[gloo/transport/tcp/pair.cc:545] Read error [10.0.0.2]:1: Connection reset by peer", "is closed"),
        ("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:9000", "is closed"),
    ],
)  # fmt: skip
def test_what_gloo_raises_becomes_one_line(text: str, words: str) -> None:
    with pytest.raises(RankError, match=words) as caught, watched(2):
        raise RuntimeError(text)
    assert "\n" not in str(caught.value) and "resume=true" in str(caught.value)
    assert caught.value.status == 4


def test_what_the_store_and_nccl_raise_becomes_one_line() -> None:
    import torch.distributed as dist

    late = lost_rank(dist.DistStoreError("Timed out after 61 seconds waiting for clients. 1/2 joined."), 1)
    assert late is not None and "has not answered" in str(late)
    broken = lost_rank(
        dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:1, remote process exited"), 1
    )
    assert broken is not None and "is closed" in str(broken)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA out of memory"), RuntimeError("process group is odd"), ValueError("gloo timed out"),
     torch.OutOfMemoryError("the store of memory is full")],
)  # fmt: skip
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, watched(2):
        raise error
    assert caught.value is error
