"""pretrain(): what is in a run folder, exact resume, refusals, one batch whatever the accumulation."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from medloom.data.errors import CheckpointError, ConfigError, ShardError
from medloom.pretrain.fault_tolerance.checkpoint import LAST, PREVIOUS
from medloom.pretrain.fault_tolerance.guard import NonFiniteLoss
from medloom.pretrain.objectives.mae import MAE
from medloom.pretrain.run import pretrain
from medloom.pretrain.tracking import METRICS, read_rows
from medloom.pretrain.weights import load_encoder
from safetensors.torch import load_file

Make = Callable[..., Any]
Rows = Callable[[Path], list[dict[str, Any]]]


class Killed(BaseException):
    """Stands for a kill: nothing in medloom catches it."""


def at(step: int, action: Callable[[], None]) -> Callable[[int, int, str], None]:
    """A progress callback that acts once, after `step`."""

    def progress(done: int, total: int, what: str) -> None:
        if done == step:
            action()

    return progress


def die() -> None:
    raise Killed


@pytest.fixture(scope="session")
def undisturbed(tiny_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run that nobody disturbed."""
    return pretrain(tiny_config(tmp_path_factory.mktemp("runs") / "run", "probe.every_steps=6"))


def test_a_run_folder_is_complete(undisturbed: Path) -> None:
    names = {path.name for path in undisturbed.iterdir()}
    assert {
        "config.yaml",
        METRICS,
        LAST,
        PREVIOUS,
        "encoder.safetensors",
        "encoder.json",
        "env.json",
    } <= names
    assert not [name for name in names if name.startswith(".partial")]
    rows = read_rows(undisturbed / METRICS)
    assert [row["step"] for row in rows] == [1, 3, 6, 9, 12]
    assert [row["samples"] for row in rows] == [4, 12, 24, 36, 48]
    for name in (
        "loss",
        "reconstruction",
        "lr",
        "grad_norm",
        "samples_per_s",
        "data_wait",
        "feature_std",
        "rankme",
    ):
        assert all(isinstance(row[name], float) for row in rows), name
    assert all(0 <= row["data_wait"] <= 1 for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert [("probe/knn_tiny_pictures" in row) for row in rows] == [False, False, True, False, True]
    pictures = {path.name for path in (undisturbed / "panels").iterdir()}
    assert pictures == {"step-0000012-reconstruction.png", "step-0000012-features.png"}


def test_the_encoder_says_where_it_comes_from_and_is_the_trained_one(undisturbed: Path) -> None:
    record = json.loads((undisturbed / "encoder.json").read_text())
    training = record["training"]
    assert (training["steps"], training["samples"], training["seeds"]) == (12, 48, {"run": 0, "data": 0})
    assert {(s["dataset"], s["licence"], s["count"]) for s in training["sources"]} == {
        ("tiny_pictures", "CC0-1.0", 24),
        ("tiny_colour", "CC-BY-4.0", 24),
    }
    assert record["held_out"]["rules"] == []
    assert record["input"]["channels"] == 3
    encoder, _ = load_encoder(undisturbed)
    trained = torch.load(undisturbed / LAST, weights_only=True)["state_dict"]
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, trained[f"encoder.{name}"]), name


def test_env_names_versions_but_no_person_and_no_machine(undisturbed: Path) -> None:
    text = (undisturbed / "env.json").read_text()
    assert "torch" in json.loads(text)["packages"]
    assert os.uname().nodename not in text
    assert str(Path.home()) not in text


@pytest.mark.parametrize("step", [2, 4, 5, 8, 11])
def test_after_a_kill_the_rows_and_weights_are_those_of_an_undisturbed_run(
    tiny_config: Make, tmp_path: Path, undisturbed: Path, step: int, rows_of: Rows
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        pretrain(tiny_config(out, "probe.every_steps=6"), progress=at(step, die))
    assert not (out / "encoder.json").exists()
    pretrain(tiny_config(out, "probe.every_steps=6", "resume=true"))
    assert rows_of(out) == rows_of(undisturbed)
    ours, theirs = load_file(out / "encoder.safetensors"), load_file(undisturbed / "encoder.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_at_the_step_and_stops(
    tiny_config: Make, tmp_path: Path, undisturbed: Path, number: signal.Signals, rows_of: Rows
) -> None:
    out = tmp_path / "run"
    before = signal.getsignal(number)
    config = tiny_config(out, "probe.every_steps=6", "trainer.checkpoint_every_steps=100")
    pretrain(config, progress=at(7, lambda: os.kill(os.getpid(), number)))
    assert signal.getsignal(number) == before
    assert torch.load(out / LAST, weights_only=True)["medloom"]["step"] == 7
    assert not (out / "encoder.json").exists()
    pretrain(tiny_config(out, "probe.every_steps=6", "resume=true"))
    assert rows_of(out) == rows_of(undisturbed)


def test_half_a_checkpoint_falls_back_to_the_one_before(
    tiny_config: Make, tmp_path: Path, undisturbed: Path, caplog: pytest.LogCaptureFixture, rows_of: Rows
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        pretrain(tiny_config(out, "probe.every_steps=6"), progress=at(10, die))
    last = out / LAST
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        pretrain(tiny_config(out, "probe.every_steps=6", "resume=true"))
    assert "resuming from" in caplog.text
    assert PREVIOUS in caplog.text
    assert rows_of(out) == rows_of(undisturbed)


def test_two_bad_checkpoints_are_an_error_not_a_fresh_start(tiny_config: Make, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        pretrain(tiny_config(out), progress=at(10, die))
    for name in (LAST, PREVIOUS):
        (out / name).write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="no checkpoint is usable"):
        pretrain(tiny_config(out, "resume=true"))


def test_an_existing_folder_is_refused_and_left_alone(
    tiny_config: Make, tmp_path: Path, undisturbed: Path
) -> None:
    before = (undisturbed / METRICS).read_bytes()
    with pytest.raises(ConfigError, match="resume=true, or"):
        pretrain(tiny_config(undisturbed))
    with pytest.raises(ConfigError, match=r"optim\.base_lr"):
        pretrain(tiny_config(undisturbed, "probe.every_steps=6", "resume=true", "optim.base_lr=0.2"))
    pretrain(tiny_config(undisturbed, "probe.every_steps=6", "resume=true"))  # complete: nothing to do
    assert (undisturbed / METRICS).read_bytes() == before


def test_two_processes_do_not_write_one_folder(tiny_config: Make, tmp_path: Path) -> None:
    out = tmp_path / "run"
    seen: list[str] = []
    code = f"from pathlib import Path; from medloom.pretrain.folder import _lock; _lock(Path({str(out)!r}))"

    def second() -> None:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        seen.append(done.stderr.splitlines()[-1])

    pretrain(tiny_config(out, "trainer.steps=2"), progress=at(1, second))
    assert "another process is training" in seen[0]
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # given back at the end


def test_micro_batches_change_nothing_but_rounding(
    tiny_config: Make, tmp_path: Path, undisturbed: Path, rows_of: Rows
) -> None:
    out = pretrain(tiny_config(tmp_path / "run", "probe.every_steps=6", "trainer.accumulate=2"))
    for ours, theirs in zip(rows_of(out), rows_of(undisturbed), strict=True):
        assert ours["step"] == theirs["step"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-2)


def test_workers_change_nothing(tiny_config: Make, tmp_path: Path, undisturbed: Path, rows_of: Rows) -> None:
    out = pretrain(tiny_config(tmp_path / "run", "probe.every_steps=6", "data.workers=2"))
    assert rows_of(out) == rows_of(undisturbed)


def test_volumes_and_convolutional_encoders_train(tiny_config: Make, tmp_path: Path, rows_of: Rows) -> None:
    volumes = pretrain(tiny_config(tmp_path / "3d", "probe.every_steps=12", ndim=3))
    rows = rows_of(volumes)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert "probe/knn_tiny_volumes" in rows[-1]
    config = tiny_config(tmp_path / "conv", "trainer.steps=4", "data.crop=[64,64]")
    config.encoder = {"name": "convnet", "model": "resnet10t"}
    assert (pretrain(config) / "encoder.json").is_file()


def test_bfloat16_trains(tiny_config: Make, tmp_path: Path, undisturbed: Path) -> None:
    run = pretrain(tiny_config(tmp_path / "run", "trainer.precision=bf16-mixed"))
    ours, theirs = read_rows(run / METRICS), read_rows(undisturbed / METRICS)
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=0.02)
    assert all(tensor.dtype == torch.float32 for tensor in load_file(run / "encoder.safetensors").values())


@pytest.mark.slow
def test_a_compiled_encoder_keeps_its_names(tiny_config: Make, tmp_path: Path, undisturbed: Path) -> None:
    run = pretrain(tiny_config(tmp_path / "run", "trainer.compile=true", "trainer.steps=2"))
    assert set(load_file(run / "encoder.safetensors")) == set(load_file(undisturbed / "encoder.safetensors"))


def test_drop_path_resumes_exactly(tiny_config: Make, tmp_path: Path, rows_of: Rows) -> None:
    def config(name: str, *more: str) -> Any:
        return tiny_config(tmp_path / name, "encoder.depth=2", "encoder.drop_path=0.5", *more)

    whole = rows_of(pretrain(config("a")))
    with pytest.raises(Killed):
        pretrain(config("b"), progress=at(6, die))
    assert rows_of(pretrain(config("b", "resume=true"))) == whole


def test_init_from_starts_a_new_run_from_the_weights(
    tiny_config: Make, tmp_path: Path, undisturbed: Path
) -> None:
    config = tiny_config(tmp_path / "next", f"init_from={undisturbed}", "optim.base_lr=1e-12")
    config.encoder = {}
    run = pretrain(config)
    record = json.loads((run / "encoder.json").read_text())
    assert record["training"]["init_from"] is not None
    ours, theirs = load_file(run / "encoder.safetensors"), load_file(undisturbed / "encoder.safetensors")
    for name in theirs:
        assert torch.allclose(ours[name], theirs[name], atol=1e-6), name
    with pytest.raises(ConfigError, match="2D"):
        other = tiny_config(tmp_path / "other", f"init_from={undisturbed}", ndim=3)
        other.encoder = {}
        pretrain(other)


def test_nan_stops_with_step_rank_and_samples_and_saves_nothing(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MAE.step

    def poisoned(self: MAE, batch, encoder):
        output = real(self, batch, encoder)
        if 20 in batch.position.tolist():  # global batch 4: the sixth step
            output.loss = output.loss * float("nan")
        return output

    monkeypatch.setattr(MAE, "step", poisoned)
    out = tmp_path / "run"
    with pytest.raises(NonFiniteLoss, match=r"step 6, rank 0: .* nan; samples tiny_\w+-[0-9a-f]{16}"):
        pretrain(tiny_config(out))
    assert torch.load(out / LAST, weights_only=True)["medloom"]["step"] == 4
    assert [row["step"] for row in read_rows(out / METRICS)] == [1, 3]


def test_refusals_before_any_folder_is_made(tiny_config: Make, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"data.shards is empty"):
        pretrain(tiny_config(out, "data.shards=''"))
    with pytest.raises(ShardError, match="not a finished folder of shards"):
        pretrain(tiny_config(out, shards=tmp_path))
    with pytest.raises(ConfigError, match="multiple of the patch"):
        pretrain(tiny_config(out, "data.crop=[20,20]"))
    with pytest.raises(ConfigError, match="does not divide"):
        pretrain(tiny_config(out, "trainer.accumulate=3"))
    assert not out.exists()
