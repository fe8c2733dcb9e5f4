"""checkpoint.py and preempt.py: damage is found, choices are right, signals become flags."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from medloom.data.errors import CheckpointError
from medloom.pretrain.fault_tolerance.checkpoint import LAST, PREVIOUS, fault, newest
from medloom.pretrain.fault_tolerance.preempt import StopSignal, requeue, steps_between_checks


def write(path: Path, value: float) -> Path:
    torch.save({"state_dict": {"w": torch.full((2000,), value)}}, path)
    return path


def test_every_cut_and_every_flipped_byte_of_a_tensor_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / LAST, 1.0)
    whole = path.read_bytes()
    assert fault(path) is None
    for share in (0.0, 0.3, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        assert fault(path) is not None, share
    start = whole.index(torch.full((8,), 1.0).numpy().tobytes())
    for offset in range(start, start + 8000, 997):
        broken = bytearray(whole)
        broken[offset] ^= 0x10
        path.write_bytes(broken)
        assert fault(path) is not None, offset


def test_newest_prefers_last_then_previous_then_complains(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    previous = write(tmp_path / PREVIOUS, 1.0)
    assert newest(tmp_path) == previous
    last = write(tmp_path / LAST, 2.0)
    assert newest(tmp_path) == last
    last.write_bytes(last.read_bytes()[:500])
    assert newest(tmp_path) == previous
    previous.write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"{LAST}.*{PREVIOUS}"):
        newest(tmp_path)
    previous.unlink()
    with pytest.raises(CheckpointError):
        newest(tmp_path)


def test_signals_are_remembered_and_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = StopSignal()
    stop.install()
    try:
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        stop.uninstall()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_forked_worker_ignores_the_handler_of_its_parent() -> None:
    stop = StopSignal()
    stop.install()
    try:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0 if stop.received is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.uninstall()


@pytest.mark.parametrize(
    ("seconds", "grace", "expected"), [(1.0, 30, 7), (0.01, 30, 50), (60, 30, 1), (0, 30, 1)]
)
def test_ranks_talk_within_a_quarter_of_the_grace(seconds: float, grace: float, expected: int) -> None:
    assert steps_between_checks(seconds, grace) == expected


def test_requeue_names_the_job_or_the_array_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "scontrol"
    script.write_text(f"""#!/bin/sh
if [ "$1" = show ]; then cat {tmp_path}/$4; exit; fi
echo "$@" >> {tmp_path}/calls; [ "$2" != 99 ]
""")
    for job in ("12", "10_3", "99"):
        (tmp_path / job).write_text("JobId=1 JobState=RUNNING Reason=None\n")
    (tmp_path / "20").write_text("JobId=20 JobState=COMPLETING Reason=None\n")  # scancel
    (tmp_path / "21").write_text("JobId=21 JobState=COMPLETING Reason=TimeLimit\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert requeue({}) is False
    assert requeue({"SLURM_JOB_ID": "12"}) is True
    assert requeue({"SLURM_JOB_ID": "13", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "3"}) is True
    assert requeue({"SLURM_JOB_ID": "99"}) is False
    assert requeue({"SLURM_JOB_ID": "20"}) is False
    assert requeue({"SLURM_JOB_ID": "21"}) is True
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["requeue 12", "requeue 10_3", "requeue 99", "requeue 21"]
