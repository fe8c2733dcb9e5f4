"""Every shipped sweep can be run by `wandb agent`: its command line parses, its keys and values hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from medloom.data.config import CONFIGS, read_yaml
from medloom.pretrain.tracking.sweep import own_folder

SWEEPS = sorted(CONFIGS.glob("sweeps/*.yaml"))


def ends(parameter: dict[str, Any]) -> list[Any]:
    """All values of a list, both ends of a range."""
    if "value" in parameter:
        return [parameter["value"]]
    return list(parameter["values"]) if "values" in parameter else [parameter["min"], parameter["max"]]


def command_line(sweep: dict[str, Any], chosen: dict[str, Any]) -> list[str]:
    """What W&B's agent starts for the parameters `chosen`, built by W&B's own functions."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    words: list[str] = []
    made = create_sweep_command_args({"args": {key: {"value": value} for key, value in chosen.items()}})
    for word in create_sweep_command(list(sweep["command"])):
        whole = word.startswith("${") and word.endswith("}")
        words += made[word[2:-1]] if whole else [word]
    return words


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_agents_command_is_a_run(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from medloom.scripts.cli import build_parser, parse

    monkeypatch.setenv("MEDLOOM_SHARDS", str(tmp_path / "shards"))
    monkeypatch.setenv("MEDLOOM_ENCODER", "runs/mae-3d")
    monkeypatch.setenv("MEDLOOM_DATA", str(tmp_path))
    sweep = read_yaml(path)
    first = {key: ends(parameter)[0] for key, parameter in sweep["parameters"].items()}
    tried = [{**first, key: value} for key, parameter in sweep["parameters"].items()
             for value in ends(parameter)]  # fmt: skip
    for chosen in tried:
        program, *words = command_line(sweep, chosen)
        assert program == "medloom"
        arguments = parse(build_parser(words[0]), words)
        if words[0] == "pretrain":
            from medloom.pretrain.config import load_config

            config = load_config(arguments.config, arguments.overrides)
            assert config.data.shards == str(tmp_path / "shards")
        else:
            from medloom.finetune.config import load_config as load_task

            overrides = [f"encoder={arguments.encoder}", f"root={arguments.root}", *arguments.overrides]
            config = load_task(arguments.task, overrides)
        assert config.tracking.tracker == "wandb"


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_metric_is_one_that_runs_log(path: Path) -> None:
    sweep = read_yaml(path)
    known = {"pretrain": "probe/mean", "finetune": "pretrained/val/dice"}
    assert sweep["metric"] == {"name": known[sweep["command"][1]], "goal": "maximize"}


def test_runs_of_a_sweep_have_folders_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    assert own_folder(Path("runs/rates")) == Path("runs/rates")
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    assert own_folder(Path("runs/rates")) == Path("runs/rates-abc")
