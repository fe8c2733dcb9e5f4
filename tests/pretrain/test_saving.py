"""checkpoint.store and saving.py: verified before the old file goes, beside training, and before a stop."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from medloom.data.errors import CheckpointError, ConfigError
from medloom.pretrain.config import TrainerConfig
from medloom.pretrain.fault_tolerance import checkpoint, saving
from medloom.pretrain.fault_tolerance.checkpoint import (
    LAST,
    PREVIOUS,
    WRITTEN,
    fault,
    history,
    kept,
    newest,
    store,
)
from medloom.pretrain.fault_tolerance.preempt import StopSignal
from medloom.pretrain.fault_tolerance.saving import end_time, snapshot
from medloom.pretrain.run import pretrain
from medloom.pretrain.tracking import METRICS, read_rows

Make = Callable[..., Any]
Rows = Callable[[Path], list[dict[str, Any]]]


def state(value: float, size: int = 3000) -> dict[str, Any]:
    return {"state_dict": {"w": torch.full((size,), value)}, "medloom": {"step": int(value)}}


def value_of(path: Path) -> float:
    return float(torch.load(path, weights_only=True)["state_dict"]["w"][0])


# ---- files -----------------------------------------------------------------------------------------------


def test_a_checkpoint_is_noted_with_its_hash_and_any_flipped_byte_is_found(tmp_path: Path) -> None:
    store(state(1), tmp_path, 1)
    stored = store(state(2), tmp_path, 2)
    last = tmp_path / LAST
    assert stored.sha256 == checkpoint.sha256(last)
    assert stored.bytes == last.stat().st_size
    assert [entry.step for entry in history(tmp_path)] == [1, 2]
    assert (value_of(last), value_of(tmp_path / PREVIOUS)) == (2, 1)
    assert fault(last) is None and fault(tmp_path / PREVIOUS) is None
    whole = last.read_bytes()
    for offset in range(0, len(whole), 1009):  # also where no CRC looks: padding and the directory of the zip
        broken = bytearray(whole)
        broken[offset] ^= 1
        last.write_bytes(broken)
        assert fault(last) is not None, offset
    assert newest(tmp_path) == tmp_path / PREVIOUS


def test_what_the_disk_garbles_never_gets_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(state(1), tmp_path, 1)
    before = (tmp_path / LAST).read_bytes()
    real = os.fsync

    def garble(descriptor: int) -> None:
        real(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.name.endswith(LAST):
            with path.open("r+b") as file:
                file.seek(100)
                file.write(b"\xff")

    monkeypatch.setattr(os, "fsync", garble)
    with pytest.raises(CheckpointError, match="read back differs"):
        store(state(2), tmp_path, 2)
    assert (tmp_path / LAST).read_bytes() == before
    assert not list(tmp_path.glob(".partial-*"))


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    store(state(1), tmp_path, 1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing raises, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limit[1]))
    try:
        with pytest.raises(CheckpointError, match=r"last\.ckpt: cannot be written .*free space"):
            store(state(2, size=500_000), tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert value_of(tmp_path / LAST) == 1
    assert newest(tmp_path) == tmp_path / LAST
    assert not list(tmp_path.glob(".partial-*"))


@pytest.mark.parametrize("links", [True, False])
def test_retention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:

        def refuse(*_: Any) -> None:
            raise OSError(errno.EPERM, "no hard links here")

        monkeypatch.setattr(os, "link", refuse)
    for step in range(2, 21, 2):
        store(state(step), tmp_path, step, keep_every=6, keep_last=4)
    assert list(kept(tmp_path)) == [20, 18, 16, 14, 12, 6]
    for step, path in kept(tmp_path).items():
        assert value_of(path) == step
        assert fault(path) is None
    assert value_of(tmp_path / PREVIOUS) == 18
    for name in (LAST, PREVIOUS):
        (tmp_path / name).unlink()
        (tmp_path / name).write_bytes(b"lost")
    assert newest(tmp_path) == tmp_path / "step-20.ckpt"


def test_by_default_two_files_stay(tmp_path: Path) -> None:
    for step in range(1, 5):
        store(state(step), tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((LAST, PREVIOUS, WRITTEN))


def test_the_copy_is_the_state_of_its_moment_and_shared_memory_stays_shared() -> None:
    weight = torch.zeros(4)
    copied = saving._on_host({"a": weight, "b": [weight, 3], "c": weight[:2]}, copy=True, seen={})
    weight += 1
    assert copied["a"].sum() == 0 and copied["c"].sum() == 0
    assert copied["a"].data_ptr() == copied["b"][0].data_ptr()
    assert copied["b"][1] == 3


def test_the_end_is_slurms_or_that_of_the_limit() -> None:
    assert end_time(TrainerConfig(), {}) is None
    assert end_time(TrainerConfig(), {"SLURM_JOB_END_TIME": "1700000000"}) == 1_700_000_000
    ours = end_time(TrainerConfig(time_limit_minutes=60), {})
    assert ours is not None and time.time() < ours <= time.time() + 3600
    both = {"SLURM_JOB_END_TIME": "1700000000"}
    assert end_time(TrainerConfig(time_limit_minutes=60), both) == 1_700_000_000


# ---- runs ------------------------------------------------------------------------------------------------


def at(step: int, act: Callable[[], None]) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, what: str) -> None:
        if done == step:
            act()

    return progress


def test_training_goes_on_while_a_checkpoint_is_written(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_of: Rows
) -> None:
    """The write of step 4 does not end before step 6 has; what it holds is step 4."""
    sixth, seen = threading.Event(), []

    def slow(state: dict[str, Any], folder: Path, step: int, **keep: Any) -> Any:
        if step == 4:
            assert sixth.wait(60), "training waits for the disk"
        stored = store(state, folder, step, **keep)
        seen.append((step, torch.load(folder / LAST, weights_only=True)["medloom"]["step"]))
        return stored

    monkeypatch.setattr(saving, "store", slow)
    run = pretrain(tiny_config(tmp_path / "run"), progress=at(6, sixth.set))
    assert seen == [(4, 4), (8, 8), (12, 12)]
    monkeypatch.setattr(saving, "store", store)
    plain = pretrain(tiny_config(tmp_path / "sync", "trainer.checkpoint_async=false"))
    assert rows_of(run) == rows_of(plain)
    ours, theirs = (torch.load(out / LAST, weights_only=True)["state_dict"] for out in (run, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_periodic_save_that_fails_is_tried_again_and_one_before_a_stop_is_an_error(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = {4}

    def failing(state: dict[str, Any], folder: Path, step: int, **keep: Any) -> Any:
        if step in full:
            raise CheckpointError(f"{folder / LAST}: cannot be written (No space left on device)")
        return store(state, folder, step, **keep)

    monkeypatch.setattr(saving, "store", failing)
    with caplog.at_level(logging.WARNING):
        run = pretrain(tiny_config(tmp_path / "run"))
    assert "No space left on device" in caplog.text and "tries again" in caplog.text
    assert [entry.step for entry in history(run)] == [8, 12]
    full.add(6)
    stop = at(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(CheckpointError, match="No space left"):
        pretrain(tiny_config(tmp_path / "stopped"), progress=stop)


def test_a_signal_before_training_takes_no_step_and_the_run_can_be_continued(
    tiny_config: Make, tmp_path: Path, rows_of: Rows
) -> None:
    out = tmp_path / "run"
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        pretrain(tiny_config(out), stop=stop)
    assert read_rows(out / METRICS) == []
    whole = pretrain(tiny_config(tmp_path / "whole"))
    # The first word of progress comes when everything is loaded and no step is taken yet.
    pretrain(tiny_config(out, "resume=true"), progress=at(0, lambda: os.kill(os.getpid(), signal.SIGUSR1)))
    assert not (out / "encoder.json").exists()
    assert rows_of(pretrain(tiny_config(out, "resume=true"))) == rows_of(whole)


def test_a_signal_while_a_checkpoint_is_written_and_one_at_the_end(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(state: dict[str, Any], folder: Path, step: int, **keep: Any) -> Any:
        if step == when:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
        return store(state, folder, step, **keep)

    monkeypatch.setattr(saving, "store", signalled)
    when = 4
    first = pretrain(tiny_config(tmp_path / "first"))
    step = torch.load(first / LAST, weights_only=True)["medloom"]["step"]
    assert 4 < step < 12
    assert not (first / "encoder.json").exists()
    when = 12
    assert (pretrain(tiny_config(tmp_path / "last")) / "encoder.json").is_file()


def test_a_run_killed_between_its_last_step_and_its_encoder_is_completed(
    tiny_config: Make, tmp_path: Path, rows_of: Rows
) -> None:
    run = pretrain(tiny_config(tmp_path / "run"))
    rows = rows_of(run)
    for name in ("encoder.safetensors", "encoder.json"):
        (run / name).unlink()
    pretrain(tiny_config(run, "resume=true"))
    assert (run / "encoder.safetensors").is_file() and (run / "encoder.json").is_file()
    assert rows_of(run) == rows


def test_a_time_limit_stops_early_enough_and_is_continued(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_of: Rows,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    options = ("trainer.grace_seconds=1",)
    whole = pretrain(tiny_config(tmp_path / "whole", *options))
    monkeypatch.setenv(saving.END_TIME, str(int(time.time()) + 3600))
    out = tmp_path / "run"
    ends = time.time() + 3600

    def late() -> None:  # the clock jumps to a second before the end
        monkeypatch.setattr(saving.time, "time", lambda: ends - 0.5)

    pretrain(tiny_config(out, *options), progress=at(5, late))
    monkeypatch.undo()
    assert "the time limit: checkpoint of step 5 is written" in caplog.text
    assert torch.load(out / LAST, weights_only=True)["medloom"]["step"] == 5
    assert rows_of(pretrain(tiny_config(out, *options, "resume=true"))) == rows_of(whole)


def test_kept_steps_are_saved_also_off_the_cadence(tiny_config: Make, tmp_path: Path) -> None:
    run = pretrain(tiny_config(tmp_path / "run", "trainer.keep_every_steps=5"))
    assert list(kept(run)) == [10, 5]
    assert json.loads((run / WRITTEN).read_text())[-1]["step"] == 12


def test_limits_that_make_no_sense_are_refused(tiny_config: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keep_last"):
        tiny_config(tmp_path, "trainer.keep_last=1")
    with pytest.raises(ConfigError, match="time_limit_minutes"):
        tiny_config(tmp_path, "trainer.time_limit_minutes=0.5")


def test_a_snapshot_is_all_that_a_resumed_run_reads(tiny_config: Make, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    class Peek(saving.Checkpointing):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append(snapshot(trainer) or {})
            super().on_train_end(trainer, pl_module)

    from medloom.pretrain import run

    before = run.Checkpointing
    run.Checkpointing = Peek  # type: ignore[misc]
    try:
        out = pretrain(tiny_config(tmp_path / "run"))
    finally:
        run.Checkpointing = before  # type: ignore[misc]
    last = torch.load(out / LAST, weights_only=True)
    assert seen[0].keys() == last.keys()
    assert seen[0]["medloom"]["step"] == 12
    assert "loops" not in last
