"""heartbeat.json: what a run says of itself while it goes on, and when it ends in each way."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from medloom.data.errors import ConfigError, ShardError
from medloom.pretrain.fault_tolerance import preempt
from medloom.pretrain.monitor.beat import BEAT, Beat, read_beat, write_beat
from medloom.pretrain.monitor.heartbeat import Heartbeat, without_paths
from medloom.pretrain.run import pretrain


def beat_of(folder: Path) -> Beat:
    found = read_beat(folder)
    assert found is not None
    return found


def test_a_run_that_ends_says_so(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    run = pretrain(tiny_config(tmp_path / "run"))
    beat = beat_of(run)
    assert (beat.state, beat.step, beat.steps, beat.ranks) == ("finished", 12, 12, 1)
    assert beat.started <= beat.stepped <= beat.time
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]
    assert set(json.loads((run / BEAT).read_text())) == set(Beat.__dataclass_fields__)


def test_a_run_that_is_stopped_or_queued_again_says_so(
    tiny_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if done == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = pretrain(tiny_config(tmp_path / "stopped"), progress=stop)
    assert beat_of(stopped).state == "stopped"
    assert 5 <= beat_of(stopped).step < 12
    monkeypatch.setattr(preempt, "requeue", lambda: True)
    queued = pretrain(tiny_config(tmp_path / "queued"), progress=stop)
    assert beat_of(queued).state == "requeued"
    with preempt.StopSignal() as early:  # before the first step, too
        os.kill(os.getpid(), signal.SIGTERM)
        pretrain(tiny_config(tmp_path / "queued", "resume=true"), stop=early)
    assert beat_of(queued).state == "requeued"
    pretrain(tiny_config(tmp_path / "queued", "resume=true"))
    assert beat_of(queued).state == "finished"


def test_a_run_that_fails_says_why_without_paths(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    def fail(done: int, total: int, what: str) -> None:
        if done == 3:
            raise ShardError(f"{tmp_path}/shards/a.tar: truncated; run `medloom shards repair`")

    with pytest.raises(ShardError):
        pretrain(tiny_config(tmp_path / "run"), progress=fail)
    beat = beat_of(tmp_path / "run")
    assert (beat.state, beat.step) == ("failed", 3)
    assert beat.error == "a.tar: truncated; run `medloom shards repair`"


def test_messages_of_libraries_are_not_kept() -> None:
    assert without_paths(RuntimeError("connection closed by peer node17 [10.0.0.3]:2345")) == "RuntimeError"
    text = "s3://bucket/a/b.tar and /home/someone/x.ckpt, shards/c.tar: 3 / 4 wrong"
    assert without_paths(ConfigError(text)) == "b.tar and x.ckpt, c.tar: 3 / 4 wrong"
    assert "hospital" not in without_paths(ConfigError("https://images.hospital.org:9000, no answer"))


def test_the_thread_beats_and_a_disk_that_refuses_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = threading.Semaphore(0)
    refuse = False

    def write(folder: Path, beat: Beat) -> None:
        written.release()
        if refuse:
            raise OSError(28, "No space left on device")
        write_beat(folder, beat)

    monkeypatch.setattr("medloom.pretrain.monitor.heartbeat.write_beat", write)
    with Heartbeat(tmp_path, main=True, steps=10, ranks=2, every=0.01) as heart:
        for _ in range(3):
            assert written.acquire(timeout=30), "the thread does not beat"
        heart.beat.step = 4
        refuse = True
        for _ in range(4):
            assert written.acquire(timeout=30), "the thread died of a full disk"
    assert caplog.text.count("heartbeat.json cannot be written (No space left on device)") == 1
    assert beat_of(tmp_path).state == "starting", "the last word could not be written either"


def test_other_ranks_are_silent(tmp_path: Path) -> None:
    with Heartbeat(tmp_path, main=False, steps=10, ranks=2) as heart:
        heart.requeued()
    assert not (tmp_path / BEAT).exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"step": null}', '{"state": "running", "later": 1}'])
def test_half_a_beat_is_no_beat_and_unknown_keys_are_left_out(tmp_path: Path, text: str) -> None:
    (tmp_path / BEAT).write_text(text)
    found = read_beat(tmp_path)
    assert found is None or (found.state == "running" and "later" in text)
