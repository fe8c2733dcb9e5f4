"""Several runs as one: the mean of what their networks predict, each case by those that hold it out.

Five folds are five runs with `fold=0` .. `fold=4`. On test, which all of them hold out, every network has a
say; on validation, which each fold holds out in part, a case is predicted by the network that has not seen
it, and the score is that of the cross-validation. A case of which any member's training saw the patient is
never scored by that member. The price is a pass of every member over its cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.errors import ConfigError
from .data import Case
from .run import arms, load_arm
from .tasks import Task
from .tasks.base import Member


class Ensemble(nn.Module):
    """The networks of one arm, one a run, on `.to(device)` as one."""

    def __init__(self, members: Sequence[tuple[Task, nn.Module, Sequence[Case]]]) -> None:
        super().__init__()
        self.tasks = [task for task, _, _ in members]
        self.networks = nn.ModuleList(network for _, network, _ in members)
        self.held_out = [{case.key: case for case in cases} for _, _, cases in members]

    def members(self, case: Case) -> list[Member]:
        """Those that hold the case out, each with the case as its own task reads it."""
        return [
            Member(task, network, cases[case.key])
            for task, network, cases in zip(self.tasks, self.networks, self.held_out, strict=True)
            if case.key in cases
        ]


def predictions(
    task: Task, network: nn.Module, cases: Sequence[Case], device: torch.device, *, mirror: bool = False
) -> Iterator[Any]:
    """One prediction a case, in order, of a network or of an ensemble."""
    if not isinstance(network, Ensemble):
        yield from task.predictions(network, cases, device, mirror=mirror)
        return
    for case in cases:
        yield task.together(network.members(case), device, mirror=mirror)


class Together:
    """Opened runs of one task, scored as one.

    Args:
        runs: folders of `finetune`.
        tasks: their tasks.
        split: which cases are scored; `task` holds those of all runs.

    Raises:
        ConfigError: no run, runs of different tasks or arms, or with different test cases.
    """

    def __init__(self, runs: Sequence[Path], tasks: Sequence[Task], split: str) -> None:
        self.runs, self.tasks = list(runs), list(tasks)
        if not runs:
            raise ConfigError("evaluate: no run: give at least one folder of `medloom finetune`")
        for run, task in zip(runs[1:], tasks[1:], strict=True):
            _check(runs[0], tasks[0], run, task)
        self.held_out = [list(task.cases[split]) for task in tasks]
        self.task = tasks[0]
        wanted = {case.key for cases in self.held_out for case in cases}
        self.task.cases[split] = [case for case in self.task.data.cases if case.key in wanted]

    @property
    def note(self) -> str:
        """The record's sentence for the report, and how many networks there are, if several."""
        several = f"Mean of the networks of {len(self.runs)} runs." if len(self.runs) > 1 else ""
        return f"{self.task.record.note} {several}".strip()

    def load(self, arm: str) -> tuple[nn.Module, dict[str, Any]]:
        """The arm of every run as one network, and the facts of the first with the number of members.

        Raises:
            CheckpointError: an arm is not finished, or its weights are damaged.
        """
        found = [load_arm(task, run / arm) for run, task in zip(self.runs, self.tasks, strict=True)]
        if len(found) == 1:
            return found[0]
        networks = [network for network, _ in found]
        seconds = sum(float(facts.get("seconds", 0)) for _, facts in found)
        facts = found[0][1] | {"members": len(found), "seconds": round(seconds, 1)}
        return Ensemble(list(zip(self.tasks, networks, self.held_out, strict=True))), facts

    def close(self) -> None:
        """Close the shards of every run."""
        for task in self.tasks:
            task.data.shards.close()


def _check(first: Path, lead: Task, run: Path, task: Task) -> None:
    for what, a, b in (
        ("task", lead.record.name, task.record.name),
        ("structures or classes", lead.record.names, task.record.names),
        ("arms", arms(lead.config), arms(task.config)),
    ):
        if a != b:
            raise ConfigError(f"{run}: {what} {b}, but {first} has {a}: give runs of one task")
    keys = [{case.key for case in one.cases["test"]} for one in (lead, task)]
    if keys[0] != keys[1]:
        raise ConfigError(
            f"{run}: other test cases than {first} ({len(keys[1])} and {len(keys[0])}): give runs with one "
            "split of test (the same record; only `fold` may differ)"
        )
