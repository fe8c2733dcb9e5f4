"""`tune(config)`: a search for the training's numbers on validation, then one run with what it found.

Every arm that is trained gets a search of its own with the same number of trials (Optuna's TPE, Bergstra et
al., NeurIPS 2011; trials below the median of the others at the same step are ended), because an encoder
that was tuned against a baseline that was not has won nothing. The first trial of each search is the
configuration as it was given, so a search never ends below it. Trials see training and validation cases
alone; the test split is scored once, by the final run. The price is trials x trial_steps x arms, and a
winner's curse on validation: its score is the best of many looks, which is why only the test counts.

The folder holds tuning.yaml, a journal for each arm (the state that a killed search continues from), the
trials' curves, tuning.json (all trials, importance), and `run`, an ordinary run folder.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.atomic import write_json, write_text
from ..data.config import read_yaml, structured, to_dict, to_yaml
from ..data.errors import ConfigError, MedloomError, nearest
from .config import FinetuneConfig
from .protocols import PROTOCOLS
from .run import ARM, MODEL, arms, finetune

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
SETTINGS, RESULT, RUN = "tuning.yaml", "tuning.json", "run"
_STARTUP = 5  # trials before TPE models anything, and before a trial can be ended early


@dataclass(frozen=True, slots=True)
class Knob:
    """One number that is searched."""

    key: str  # of FinetuneConfig
    low: float
    high: float
    log: bool = False
    arm: str | None = None  # only this arm has it; None: every arm


KNOBS: tuple[Knob, ...] = (
    Knob("optim.encoder_lr", 1e-5, 2e-3, log=True, arm="pretrained"),
    Knob("optim.layer_decay", 0.5, 1.0, arm="pretrained"),
    Knob("optim.scratch_lr", 5e-5, 5e-3, log=True, arm="scratch"),
    Knob("optim.head_lr", 2e-4, 2e-2, log=True),
    Knob("optim.weight_decay", 1e-3, 0.3, log=True),
    Knob("augment.affine", 0.0, 1.0),
    Knob("augment.intensity", 0.0, 1.0),
    Knob("augment.noise", 0.0, 0.5),
)


@dataclass(frozen=True, slots=True)
class Budget:
    """How much is searched."""

    trials: int = 20  # of each arm
    steps: int = 0  # optimiser steps of a trial; 0: a third of the run's
    knobs: tuple[str, ...] = ()  # keys that are searched; empty: all

    def __post_init__(self) -> None:
        if self.trials < 1 or self.steps < 0:
            raise ConfigError(f"trials {self.trials}, trial steps {self.steps}: give at least 1 trial")
        known = tuple(knob.key for knob in KNOBS)
        for key in self.knobs:
            if key not in known:
                raise ConfigError(f"--knobs: unknown key {key!r}{nearest(key, known)}")


def tune(config: FinetuneConfig, budget: Budget, progress: Progress | None = None) -> Path | None:
    """Search, then train with the best; returns the run folder, or None when a signal stopped it.

    Args:
        config: the run; its `out` is the folder of the search.

    Raises:
        ConfigError: a protocol without a rate to search, optuna is missing, another search in the folder.
        MedloomError: every trial of an arm failed.
    """
    optuna = _optuna()
    folder = config.folder
    if PROTOCOLS[config.protocol].frozen:
        raise ConfigError(
            f"protocol={config.protocol}: a probe of frozen features chooses its own numbers on validation; "
            "tune one that trains the encoder (full, sawtooth, unfreeze, lora)"
        )
    config = _settle(config, budget, folder)
    steps = budget.steps or max(1, config.steps // 3)
    searches: dict[str, Any] = {}
    for arm in arms(config):
        knobs = [k for k in KNOBS if k.arm in (None, arm) and (not budget.knobs or k.key in budget.knobs)]
        if not knobs:
            raise ConfigError(f"--knobs: arm {arm} has none of {', '.join(budget.knobs)}")
        search = _Search(optuna, replace(config, steps=steps), arm, knobs, budget.trials, folder / arm)
        if not search.run(progress):
            return None
        searches[arm] = search.described()
        write_json(folder / RESULT, {"trials": budget.trials, "steps": steps, "arms": searches})
    found = {arm: search["best"]["params"] for arm, search in searches.items()}
    run = _final(config, found, folder, progress)
    if run is not None:
        shutil.copyfile(folder / RESULT, run / RESULT)
    return run


class _Search:
    """The trials of one arm."""

    def __init__(
        self, optuna: Any, config: FinetuneConfig, arm: str, knobs: Sequence[Knob], trials: int, folder: Path
    ) -> None:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        folder.mkdir(parents=True, exist_ok=True)
        self.optuna, self.config, self.arm, self.knobs = optuna, config, arm, list(knobs)
        self.trials, self.folder = trials, folder
        self.study: optuna.Study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(folder / "journal.log"))),
            study_name=arm, direction="maximize", load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP, n_warmup_steps=0),
        )  # fmt: skip
        if not self.study.trials:
            given = {knob.key: self._given(knob) for knob in self.knobs}
            self.study.enqueue_trial(given)

    def run(self, progress: Progress | None) -> bool:
        """Do what is left of the trials; False when a signal stopped one."""
        states = self.optuna.trial.TrialState
        for begun in self.study.get_trials(states=(states.RUNNING,)):  # of a killed search
            if len(begun.params) < len(self.knobs):
                self.study.tell(begun.number, state=states.FAIL)
            elif not self._try(self.optuna.trial.Trial(self.study, begun._trial_id), progress):
                return False
        while (number := self._done()) < self.trials:
            # A sampler for each trial, so that a continued search draws what an unbroken one would have.
            seed = np.random.SeedSequence([self.config.seed, number]).generate_state(1)[0]
            self.study.sampler = self.optuna.samplers.TPESampler(
                seed=int(seed), n_startup_trials=_STARTUP, multivariate=True
            )
            trial = self.study.ask()
            for knob in self.knobs:
                trial.suggest_float(knob.key, knob.low, knob.high, log=knob.log)
            if not self._try(trial, progress):
                return False
        if not any(one.state == states.COMPLETE for one in self.study.trials):
            raise MedloomError(f"{self.folder}: no trial was finished: see the reasons in the log")
        return True

    def _done(self) -> int:
        return sum(one.state.is_finished() for one in self.study.trials)

    def _given(self, knob: Knob) -> float:
        """The configuration's own value, moved into the range."""
        from .protocols.gradient import head_rate

        section, _, name = knob.key.partition(".")
        value = getattr(getattr(self.config, section), name)
        if value is None:  # by the kind of task; scratch_lr is by the encoder: the middle of the range
            value = head_rate(self.config.task.kind) if name == "head_lr" else (knob.low * knob.high) ** 0.5
        return float(min(max(value, knob.low), knob.high))

    def _try(self, trial: Any, progress: Progress | None) -> bool:
        """Train one trial; False when a signal stopped it (it is continued by the next call)."""
        states = self.optuna.trial.TrialState
        place = self.folder / f"trial-{trial.number:03d}"
        watch = _Watch(self.optuna, trial, place / self.arm / "metrics.jsonl", self._criterion, progress)
        done, total = self._done(), self.trials
        if progress:
            progress(done, total, f"tune {self.config.task.name} {self.arm}")
        try:
            finetune(_with(self.config, trial.params, self.arm, place), progress=watch)
        except self.optuna.TrialPruned:
            self.study.tell(trial, state=states.PRUNED)
        except MedloomError as error:
            if isinstance(error, ConfigError):
                raise
            logger.warning("trial %d failed: %s", trial.number, error)
            self.study.tell(trial, state=states.FAIL)
        else:
            facts = place / self.arm / ARM
            if not facts.is_file():
                return False
            self.study.tell(trial, float(json.loads(facts.read_text())["validation"][self._criterion]))
        for name in (MODEL, "last.ckpt"):  # the curve stays, the weights of a trial are of no use
            (place / self.arm / name).unlink(missing_ok=True)
        if progress:
            progress(done + 1, total, f"tune {self.config.task.name} {self.arm}")
        return True

    @property
    def _criterion(self) -> str:
        from .tasks import TASKS

        return TASKS[self.config.task.kind].criterion

    def described(self) -> dict[str, Any]:
        """All trials, the best one, and how much of the spread each number explains; plain JSON values."""
        states = self.optuna.trial.TrialState
        finished = [one for one in self.study.trials if one.state == states.COMPLETE]
        importance: dict[str, float] = {}
        if len(finished) >= _STARTUP and len({one.value for one in finished}) > 1:  # fewer say nothing
            found = self.optuna.importance.get_param_importances(
                self.study, evaluator=self.optuna.importance.FanovaImportanceEvaluator(seed=self.config.seed)
            )
            importance = {key: round(float(value), 4) for key, value in found.items()}
        best = self.study.best_trial
        return {
            "criterion": self._criterion,
            "ranges": {k.key: [k.low, k.high, "log" if k.log else "linear"] for k in self.knobs},
            "best": {"number": best.number, "value": best.value, "params": best.params},
            "importance": importance,
            "trials": [
                {
                    "number": one.number, "state": one.state.name.lower(), "value": one.value,
                    "last": max(one.intermediate_values.values(), default=None), "params": one.params,
                    "seconds": None if one.duration is None else round(one.duration.total_seconds(), 1),
                }
                for one in self.study.trials
            ],
        }  # fmt: skip


class _Watch:
    """A progress callback that reports validations of a trial to the study, and ends a poor trial."""

    def __init__(
        self, optuna: Any, trial: Any, curve: Path, criterion: str, progress: Progress | None
    ) -> None:
        self.optuna, self.trial, self.curve = optuna, trial, curve
        self.criterion, self.progress, self.size = f"val/{criterion}", progress, -1

    def __call__(self, done: int, total: int, what: str) -> None:
        if self.progress:
            self.progress(done, total, f"trial {self.trial.number} {what}")
        size = self.curve.stat().st_size if self.curve.is_file() else -1
        if size == self.size:
            return
        self.size = size
        known = self.trial.study.trials[self.trial.number].intermediate_values
        for row in map(json.loads, self.curve.read_text().splitlines()):
            if self.criterion in row and row["step"] not in known:
                self.trial.report(row[self.criterion], row["step"])
        if done < total and self.trial.should_prune():
            raise self.optuna.TrialPruned


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("`medloom tune` needs Optuna: pip install 'medloom[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _settle(config: FinetuneConfig, budget: Budget, folder: Path) -> FinetuneConfig:
    """Write the settings of a new search, or check those of the one that is continued.

    The memory budget is settled once: what is free then would otherwise choose the batch of each trial.
    """
    from .planner import memory_gib
    from .run import choose_device, differences

    path = folder / SETTINGS
    if path.is_file():
        stored = read_yaml(path)
        before = structured(FinetuneConfig, stored["config"], where=str(path))
        now = {**to_dict(config), "budget": [budget.trials, budget.steps, list(budget.knobs)]}
        changed = differences({**to_dict(before), "budget": stored["budget"]}, now)
        if changed:
            raise ConfigError(
                f"{folder}: holds another search ({'; '.join(changed[:3])}): choose another --out"
            )
        return replace(config, memory_gib=before.memory_gib)
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: exists and holds no search: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    memory = memory_gib(config, choose_device(config.device).type)
    config = replace(config, memory_gib=round(memory, 3))
    stored = {"config": to_dict(config), "budget": [budget.trials, budget.steps, list(budget.knobs)]}
    write_text(path, to_yaml(stored))
    return config


def _with(config: FinetuneConfig, params: Mapping[str, float], arm: str, out: Path) -> FinetuneConfig:
    """The configuration of one arm with these numbers."""
    values = {**to_dict(config), "arm": arm, "out": str(out)}
    for key, value in params.items():
        section, _, name = key.partition(".")
        values[section] = {**values[section], name: value}
    return structured(FinetuneConfig, values, where="trial")


def _final(
    config: FinetuneConfig, found: Mapping[str, Mapping[str, float]], folder: Path, progress: Progress | None
) -> Path | None:
    """Train every arm with its own numbers and put the arms into one run folder."""
    run, parts = folder / RUN, {arm: folder / arm / "best" for arm in found}
    for arm, place in parts.items():
        finetune(_with(config, found[arm], arm, place), progress=progress)
        if not (place / arm / ARM).is_file():
            return None
    run.mkdir(exist_ok=True)
    for name in ("split.csv", "plan.yaml", "encoder.json", "skipped.json", "env.json"):
        shutil.copyfile(parts["pretrained"] / name, run / name)
    for arm, place in parts.items():
        shutil.copytree(place / arm, run / arm, dirs_exist_ok=True)
        shutil.copyfile(place / "config.yaml", run / arm / "config.yaml")
    # What differs between the arms stands beside each; evaluation asks for none of it.
    values = to_dict(_with(config, found["pretrained"], "pretrained", run))
    write_text(run / "config.yaml", to_yaml({**values, "arm": config.arm}))
    return run
