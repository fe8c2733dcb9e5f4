"""Bad steps: stopped, skipped or rolled back, the same after a kill, and repeated by a replay."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from medloom.data.config import structured
from medloom.data.errors import ConfigError
from medloom.pretrain.config import PretrainConfig, complete
from medloom.pretrain.fault_tolerance.bad_steps import read_record
from medloom.pretrain.fault_tolerance.checkpoint import LAST
from medloom.pretrain.fault_tolerance.guard import BadStep, GradientSpike, NonFiniteLoss
from medloom.pretrain.fault_tolerance.replay import replay
from medloom.pretrain.objectives.mae import MAE
from medloom.pretrain.run import pretrain
from medloom.pretrain.tracking import METRICS, read_rows
from medloom.scripts.cli import main

Make = Callable[..., Any]
Rows = Callable[[Path], list[dict[str, Any]]]
REAL = MAE.step


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def poison(monkeypatch: pytest.MonkeyPatch, factors: dict[int, float]) -> list[int]:
    """Multiply the loss of the batches with these positions; returns the steps that were computed."""
    steps: list[int] = []

    def step(self: MAE, batch: Any, encoder: Any) -> Any:
        steps.append(batch.step + 1)
        output = REAL(self, batch, encoder)
        for position, factor in factors.items():
            if position in batch.position.tolist():
                output.loss = output.loss * factor
        return output

    monkeypatch.setattr(MAE, "step", step)
    return steps


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / LAST, weights_only=True)["state_dict"]


def equal(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def die_at(step: int) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, what: str) -> None:
        if done == step:
            raise Killed

    return progress


SIXTH = 20  # a position of the sixth step: the global batch is 4


def test_skip_leaves_the_update_out_and_goes_on(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_of: Rows
) -> None:
    poison(monkeypatch, {SIXTH: math.nan})
    options = ("trainer.on_nonfinite=skip", "trainer.log_every=1")
    run = pretrain(tiny_config(tmp_path / "run", *options))
    rows = read_rows(run / METRICS)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[5]["loss"] is None
    assert [row.get("bad_steps") for row in rows] == [None] * 5 + [1] * 7
    assert all(math.isfinite(row["loss"]) for row in rows if row["step"] != 6)
    record = json.loads((run / "bad" / "step-6.json").read_text())
    assert (record["kind"], record["action"], record["step"]) == ("nonfinite", "skip", 6)
    assert record["batches"][0]["positions"] == [20, 21, 22, 23]
    assert record["batches"][0]["loss"] == "nan"
    assert all(key.startswith("tiny_") for key in record["batches"][0]["keys"])
    # What the step met: the weights after five steps, which those after six of the skipped run still are.
    kept = torch.load(run / "bad" / "step-6.ckpt", weights_only=True)["state_dict"]
    poison(monkeypatch, {})
    shorter = tiny_config(tmp_path / "cut", "trainer.checkpoint_every_steps=5")
    with pytest.raises(Killed):
        pretrain(shorter, progress=die_at(6))
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights(tmp_path / "cut").items())


@pytest.mark.parametrize("policy", ["skip", "rollback"])
@pytest.mark.parametrize(
    "kill", [pytest.param(5, marks=pytest.mark.slow), 7, pytest.param(9, marks=pytest.mark.slow)]
)
def test_a_killed_run_leaves_out_the_same_steps(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_of: Rows, policy: str, kill: int
) -> None:
    poison(monkeypatch, {SIXTH: math.inf})
    options = (f"trainer.on_nonfinite={policy}", "trainer.log_every=2")
    whole = pretrain(tiny_config(tmp_path / "whole", *options))
    with pytest.raises(Killed):
        pretrain(tiny_config(tmp_path / "run", *options), progress=die_at(kill))
    run = pretrain(tiny_config(tmp_path / "run", *options, "resume=true"))
    assert rows_of(run) == rows_of(whole)
    assert equal(run, whole)


def test_rollback_gives_what_skip_gives(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_of: Rows
) -> None:
    steps = poison(monkeypatch, {SIXTH: math.nan})
    back = pretrain(tiny_config(tmp_path / "back", "trainer.on_nonfinite=rollback"))
    # Found with the row of step 6, after which the run goes on from the checkpoint of step 4.
    assert steps == [1, 2, 3, 4, 5, 6, *range(5, 13)]
    skipped = pretrain(tiny_config(tmp_path / "skip", "trainer.on_nonfinite=skip"))
    assert equal(back, skipped)
    assert [row["step"] for row in read_rows(back / METRICS)] == [1, 3, 6, 9, 12]
    assert read_record(back / "bad" / "step-6.json").checkpoint == 4
    assert (back / "bad" / "step-6.ckpt").is_file()


def test_rollback_before_the_first_checkpoint_begins_again(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = poison(monkeypatch, {1: math.nan})
    run = pretrain(tiny_config(tmp_path / "run", "trainer.on_nonfinite=rollback"))
    assert steps == [1, *range(1, 13)]
    assert (run / "encoder.json").is_file()


def test_going_back_in_vain_is_an_error(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, dict.fromkeys(range(SIXTH, 48), math.nan))  # every step from the sixth on
    with pytest.raises(BadStep, match=r"went back to step 8 3 times .* weights are at fault"):
        pretrain(tiny_config(tmp_path / "run", "trainer.on_nonfinite=rollback", "trainer.log_every=1"))
    with pytest.raises(BadStep, match=r"step 8, .* more than trainer\.most_bad_steps=2"):
        options = ("trainer.on_nonfinite=skip", "trainer.most_bad_steps=2")
        pretrain(tiny_config(tmp_path / "other", *options))


def test_a_stopped_run_can_go_on_by_rolling_back(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_of: Rows
) -> None:
    poison(monkeypatch, {SIXTH: math.nan})
    with pytest.raises(NonFiniteLoss, match=r"--replay .*step-6\.json.* trainer\.on_nonfinite=rollback"):
        pretrain(tiny_config(tmp_path / "run"))
    run = pretrain(tiny_config(tmp_path / "run", "resume=true", "trainer.on_nonfinite=rollback"))
    assert rows_of(run) == rows_of(pretrain(tiny_config(tmp_path / "b", "trainer.on_nonfinite=rollback")))


SPIKY = ("trainer.steps=30", "trainer.log_every=1", "trainer.checkpoint_every_steps=10")


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_spike_is_left_out(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_of: Rows, policy: str
) -> None:
    poison(monkeypatch, {4 * 24: 1e4})  # the 25th step
    options = (*SPIKY, f"trainer.on_spike={policy}")
    run = pretrain(tiny_config(tmp_path / "run", *options))
    record = read_record(run / "bad" / "step-25.json")
    assert record.kind == "spike"
    assert isinstance(record.norm, float) and isinstance(record.usual_norm, float)
    assert record.norm > 10 * record.usual_norm
    assert max(row["grad_norm"] for row in read_rows(run / METRICS) if row.get("grad_norm")) < record.norm
    with pytest.raises(Killed):
        pretrain(tiny_config(tmp_path / "killed", *options), progress=die_at(23))
    assert rows_of(pretrain(tiny_config(tmp_path / "killed", *options, "resume=true"))) == rows_of(run)


def test_a_spike_can_stop_the_run_and_passes_where_nobody_asked(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {4 * 24: 1e4})
    with pytest.raises(GradientSpike, match=r"step 25, the gradient norm is .* × its median"):
        pretrain(tiny_config(tmp_path / "run", *SPIKY, "trainer.on_spike=stop"))
    assert not (pretrain(tiny_config(tmp_path / "plain", *SPIKY)) / "bad").exists()


def test_unknown_policies_name_the_known_ones(tiny_config: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean rollback"):
        tiny_config(tmp_path / "run", "trainer.on_nonfinite=rolback")
    with pytest.raises(ConfigError, match="spike_factor"):
        tiny_config(tmp_path / "run", "trainer.spike_factor=1")


# ---- replay ----------------------------------------------------------------------------------------------


def run_with_a_bad_module(make: Make, out: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Any:
    """A run whose decoder gives infinity for position 20, and its configuration."""

    def step(self: MAE, batch: Any, encoder: Any) -> Any:
        def broken(module: Any, inputs: Any, output: Any) -> Any:
            return output * math.inf if SIXTH in batch.position.tolist() else output

        hook = self.decoder.register_forward_hook(broken, prepend=True)
        try:
            return REAL(self, batch, encoder)
        finally:
            hook.remove()

    monkeypatch.setattr(MAE, "step", step)
    config = make(out, *options)
    pretrain(config)
    return config


def saved_config(run: Path) -> PretrainConfig:
    return complete(structured(PretrainConfig, json.loads(json.dumps(_yaml(run / "config.yaml")))))


def _yaml(path: Path) -> Any:
    from medloom.data.config import read_yaml

    return read_yaml(path)


def test_a_replay_repeats_the_step_and_names_the_module(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run_with_a_bad_module(tiny_config, run, monkeypatch, "trainer.on_nonfinite=skip", "trainer.accumulate=2")
    record = read_record(run / "bad" / "step-6.json")
    found = replay(record, run, saved_config(run))
    assert found.repeats
    assert found.weights_step == 5
    assert found.forward is not None and "decoder" in found.forward
    recorded, here = zip(*found.losses, strict=True)
    assert not math.isfinite(recorded[0]) and not math.isfinite(here[0])
    assert here[1] == pytest.approx(recorded[1], rel=1e-6)  # the micro-batch that is sound
    assert [row["position"] for row in found.samples] == [20, 21, 22, 23]
    assert [math.isfinite(row["loss"]) for row in found.samples] == [False, True, True, True]
    assert main(["pretrain", "--replay", str(run / "bad" / "step-6.json")]) == 1
    said = capsys.readouterr().out
    assert "the step is as bad here as it was in the run" in said
    assert record.batches[0]["keys"][0] in said


def test_a_replay_of_a_sound_step_says_that_it_does_not_repeat(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, {SIXTH: math.nan})
    with pytest.raises(NonFiniteLoss):
        pretrain(tiny_config(tmp_path / "run"))
    monkeypatch.setattr(MAE, "step", REAL)
    record = tmp_path / "run" / "bad" / "step-6.json"
    assert main(["pretrain", "--replay", str(record)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the step is sound here" in said
    assert "does not repeat here" in said
    assert "the weights are those after step 4" in said
    assert main(["pretrain", "--replay", str(tmp_path / "run" / "bad" / "step-7.json")]) == 2
    assert main(["pretrain"]) == 2


def test_a_replay_of_a_spike_finds_its_norm(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {4 * 24: 1e4})
    run = pretrain(tiny_config(tmp_path / "run", *SPIKY, "trainer.on_spike=skip"))
    record = read_record(run / "bad" / "step-25.json")
    found = replay(record, run, saved_config(run))
    assert found.norms["all"] == pytest.approx(record.norm, rel=1e-4)
    assert found.repeats
    assert found.samples[0]["loss"] > 100 * found.samples[1]["loss"]
