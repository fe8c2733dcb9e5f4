"""Training many heads together on one pass of frozen features.

What a probe reads is computed once for every training and validation case; all candidate heads then see the
same batches of it, and validation chooses one of them. A step of 52 linear heads on a ViT-S takes 24 ms of
one core, twice that of four heads; to encode its 256 images takes 38 s. Nothing is augmented. Tokens that
would not fit into memory are computed again for each batch, to the same numbers. The state goes to
`last.ckpt` every few minutes and when a signal comes.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...data.atomic import replacing
from ...pretrain.schedules import cosine
from ..data import Case
from ..heads import FrozenProbe
from ..tasks.images import ImageTask
from .base import Outcome, Session, better
from .gradient import CHECKPOINT, read_checkpoint

BATCH = 256
_MOST_GIB = 4.0  # of features in memory, where `memory_gib` does not say


class Candidates(nn.Module):
    """Heads that are trained together."""

    @abstractmethod
    def forward(self, rows: Tensor) -> Tensor:
        """Outputs [heads, B, outputs] of rows [B, ...]."""

    @abstractmethod
    def optimiser(self, batch: int) -> torch.optim.Optimizer:
        """Each group has `peak`, its rate at the first step."""

    @abstractmethod
    def head(self, index: int) -> dict[str, Tensor]:
        """Tensors of the network, by name, that make it this candidate."""

    @abstractmethod
    def described(self, index: int) -> dict[str, Any]:
        """What makes this candidate differ, for arm.json."""


class Rows:
    """What a probe reads of some cases: in memory where it fits, else computed when asked for."""

    def __init__(self, task: ImageTask, probe: FrozenProbe, cases: Sequence[Case], session: Session) -> None:
        self.task, self.probe, self.cases, self.device = task, probe, cases, session.device
        one = task.features(probe, cases[:1], session.device)
        most = (task.config.memory_gib or _MOST_GIB) * 2**30
        self.kept: Tensor | None = None
        if one.size * 4 * len(cases) <= most:
            self.kept = torch.from_numpy(task.features(probe, cases, session.device))

    def __getitem__(self, places: Sequence[int]) -> Tensor:
        """float32 [len(places), ...] on the device."""
        if self.kept is not None:
            return self.kept[list(places)].to(self.device)
        part = [self.cases[place] for place in places]
        found = [self.probe.described(x) for x in self.task.evaluated(self.probe, part, self.device)]
        return torch.cat(found)


def fit_together(
    task: ImageTask, network: FrozenProbe, candidates: Candidates, session: Session, rows: dict[str, Rows]
) -> Outcome:
    """Train the candidates for `steps` and make the network the one that is best on validation."""
    run = _Run(task, candidates, session, rows)
    run.resume()
    steps, checks = task.config.steps, task.config.validations
    due = {math.ceil(steps * part / checks) for part in range(1, checks + 1)}
    saved = time.monotonic()
    while run.step < steps:
        loss = run.train()
        session.report(run.step, steps, f"{task.record.name} {session.arm} | loss {loss:.3f}")
        if run.step in due:
            run.validate()
        if session.stop():
            run.save()
            return Outcome(finished=False)
        if time.monotonic() - saved > 60 * task.config.checkpoint_minutes:
            run.save()
            saved = time.monotonic()
    with torch.no_grad():
        for name, tensor in run.best_head.items():
            network.get_parameter(name).copy_(tensor)
    facts = {
        "criterion": task.criterion,
        "candidates": len(candidates(rows["val"][[0]])),
        "chosen": run.chosen,
    }
    return Outcome(run.best_step, run.best, facts)


class _Run:
    def __init__(
        self, task: ImageTask, candidates: Candidates, session: Session, rows: dict[str, Rows]
    ) -> None:
        self.task, self.candidates, self.rows = task, candidates.to(session.device), rows
        self.path, self.device = session.folder / CHECKPOINT, session.device
        train = task.cases["train"]
        self.batch = min(task.config.batch_size or BATCH, len(train))
        self.place = {case.key: index for index, case in enumerate(train)}
        self.targets = {part: torch.from_numpy(task.truth(task.cases[part])) for part in ("train", "val")}
        self.optimiser = candidates.optimiser(self.batch)
        self.step = self.best_step = 0
        self.best: dict[str, float] = {}
        self.best_head: dict[str, Tensor] = {}
        self.chosen: dict[str, Any] = {}

    def train(self) -> float:
        """One step of every candidate; returns their mean loss."""
        share = cosine(self.step, self.task.config.steps, 1.0, 0.0)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * share
        first = self.step * self.batch
        places = [self.place[self.task.case_at(first + i).key] for i in range(self.batch)]
        outputs = self.candidates(self.rows["train"][places])
        target = self.targets["train"][places].to(self.device)
        # A head that diverged learns no more; validation passes it over.
        alive = outputs.detach().isfinite().flatten(1).all(dim=1)
        outputs = torch.where(alive[:, None, None], outputs, 0.0)
        # Losses are means over a batch, so the one of all heads' batches is the mean of the heads' losses;
        # times their number, each head has the gradient that it would have alone.
        loss = self.task.criterion_of(
            outputs.flatten(0, 1), target.repeat(len(outputs), *[1] * (target.ndim - 1))
        )
        self.optimiser.zero_grad(set_to_none=True)
        (loss * len(outputs)).backward()
        self.optimiser.step()
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def validate(self) -> None:
        """Score every candidate; remember the head that is the best so far."""
        count = len(self.task.cases["val"])
        parts = [
            self.candidates(self.rows["val"][range(start, min(start + self.batch, count))])
            for start in range(0, count, self.batch)
        ]
        target = self.targets["val"].numpy()
        for index, outputs in enumerate(torch.cat(parts, dim=1)):
            predicted = self.task.activate(outputs.float()).double().cpu().numpy()
            if not np.isfinite(predicted).all():
                continue
            found = self.task.scores(predicted, target)
            if not self.best or better(found, self.task) > better(self.best, self.task):
                self.best, self.best_step = found, self.step
                self.best_head = {n: t.detach().cpu().clone() for n, t in self.candidates.head(index).items()}
                self.chosen = self.candidates.described(index)

    def save(self) -> None:
        """Write last.ckpt atomically."""
        state = {
            "step": self.step, "candidates": self.candidates.state_dict(), "best": self.best,
            "optimiser": self.optimiser.state_dict(), "best_step": self.best_step, "chosen": self.chosen,
            "best_head": self.best_head,
        }  # fmt: skip
        with replacing(self.path) as temporary:
            torch.save(state, temporary)

    def resume(self) -> None:
        """Continue from last.ckpt where there is a readable one."""
        state = read_checkpoint(self.path)
        if state is None:
            return
        self.candidates.load_state_dict(state["candidates"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.best, self.best_step = state["step"], state["best"], state["best_step"]
        self.best_head, self.chosen = state["best_head"], state["chosen"]
