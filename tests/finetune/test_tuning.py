"""finetune/tuning.py: the search sees validation alone, continues where it was killed, and is reported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from medloom.data.config import read_yaml
from medloom.data.errors import ConfigError
from medloom.finetune import tuning
from medloom.finetune.config import FinetuneConfig
from medloom.finetune.run import finetune
from medloom.finetune.tasks.base import Task
from medloom.finetune.tuning import Budget, tune
from medloom.scripts import cli

KNOBS = ("optim.encoder_lr", "optim.scratch_lr", "augment.noise")


@pytest.fixture
def config(workshop: Any, pictures: Path, tmp_path: Path) -> FinetuneConfig:
    return workshop.config(pictures, tmp_path / "search", "batch_size=8", "memory_gib=1", "steps=6")


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "tuning.json").read_text())


def test_a_search_chooses_by_validation_and_never_reads_test(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    whole = Task.__init__

    def watched(self: Task, *args: Any) -> None:
        whole(self, *args)
        tested = {case.key for case in self.cases["test"]}
        plain: Any = self.whole  # type: ignore[attr-defined]

        def noted(case: Any) -> Any:
            read.update({case.key} & tested)
            return plain(case)

        self.whole = noted  # type: ignore[attr-defined]

    monkeypatch.setattr(Task, "__init__", watched)
    run = tune(config, Budget(trials=3, steps=2, knobs=KNOBS))
    assert run is not None
    assert not read
    found = result(config.folder)
    assert found == result(run)
    for arm, keys in (("pretrained", {KNOBS[0], KNOBS[2]}), ("scratch", {KNOBS[1], KNOBS[2]})):
        search = found["arms"][arm]
        assert set(search["ranges"]) == keys
        assert len(search["trials"]) == 3
        values = [trial["value"] for trial in search["trials"] if trial["state"] == "complete"]
        assert search["best"]["value"] == max(values)
        given = search["trials"][0]["params"]
        assert given["augment.noise"] == pytest.approx(config.augment.noise)
        own = read_yaml(run / arm / "config.yaml")
        assert own["steps"] == config.steps
        assert own["augment"]["noise"] == pytest.approx(search["best"]["params"]["augment.noise"])
    assert not list(config.folder.glob("*/trial-*/*/model.safetensors"))


def test_a_killed_search_continues_as_if_nothing_had_been(
    config: FinetuneConfig, workshop: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(trials=4, steps=2, knobs=("optim.encoder_lr", "augment.noise"))
    items = ("batch_size=8", "memory_gib=1", "steps=6", "baseline=false")
    straight = workshop.config(pictures, tmp_path / "straight", *items)
    broken = workshop.config(pictures, tmp_path / "broken", *items)
    tune(straight, budget)
    seen: list[str] = []

    def killed(one: FinetuneConfig, progress: Any = None) -> Path:
        seen.append(one.folder.name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return finetune(one, progress)

    monkeypatch.setattr(tuning, "finetune", killed)
    with pytest.raises(KeyboardInterrupt):
        tune(broken, budget)
    seen.clear()

    def again(one: FinetuneConfig, progress: Any = None) -> Path:
        seen.append(one.folder.name)
        return finetune(one, progress)

    monkeypatch.setattr(tuning, "finetune", again)
    tune(broken, budget)
    assert seen == ["trial-002", "trial-003", "best"]
    for one, other in zip(
        result(straight.folder)["arms"]["pretrained"]["trials"],
        result(broken.folder)["arms"]["pretrained"]["trials"], strict=True,
    ):  # fmt: skip
        assert one["params"] == other["params"]
        assert one["value"] == pytest.approx(other["value"])
    with pytest.raises(ConfigError, match="another search"):
        tune(broken, Budget(trials=5, steps=2, knobs=budget.knobs))


def test_a_poor_trial_is_ended_early(config: FinetuneConfig, tmp_path: Path) -> None:
    import optuna

    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=1))
    good = study.ask()
    good.report(0.9, 2)
    study.tell(good, 0.9)
    curve = tmp_path / "metrics.jsonl"
    curve.write_text('{"step": 2, "val/auc": 0.5}\n')
    watch = tuning._Watch(optuna, study.ask(), curve, "auc", None)
    with pytest.raises(optuna.TrialPruned):
        watch(2, 6, "")
    better = tuning._Watch(optuna, study.ask(), curve, "auc", None)
    curve.write_text('{"step": 2, "val/auc": 0.95}\n')
    better(2, 6, "")  # goes on
    assert study.trials[2].intermediate_values == {2: 0.95}


@pytest.mark.parametrize(
    ("items", "budget", "message"),
    [
        (["protocol=logistic"], Budget(trials=2), "chooses its own numbers"),
        (["baseline=false"], Budget(trials=2, knobs=("optim.scratch_lr",)), "has none of"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(
    workshop: Any, pictures: Path, tmp_path: Path, items: list[str], budget: Budget, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tune(workshop.config(pictures, tmp_path / "search", *items), budget)
    with pytest.raises(ConfigError, match=re.escape("did you mean optim.encoder_lr")):
        Budget(knobs=("optim.encoder_rl",))


def test_the_command_tunes_scores_and_reports(
    workshop: Any, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "tune", str(pictures), "--encoder", str(workshop.root / "encoder2d"), "--root", str(workshop.root),
        "--out", str(tmp_path / "search"), "--trials", "2", "--trial-steps", "2", "--knobs", ",".join(KNOBS),
        f"cache={workshop.cache}", "steps=4", "validations=2", "batch_size=8", "device=cpu",
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "optim.scratch_lr" in out
    page = (tmp_path / "search" / "run" / "evaluation" / "report.html").read_text()
    assert "Search for the training" in page
    assert page.count("<summary>2 trials</summary>") == 2
    for key in KNOBS:
        assert key in page
