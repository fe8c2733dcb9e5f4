"""Attention over frozen tokens: one cross-attention block, three rates trained together, one chosen."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ...pretrain.optim import decays
from ..probes import Attentive
from ..tasks.images import ImageTask
from .base import Outcome, Protocol, Session
from .rows import Candidates, Rows, fit_together


class AttentiveProbe(Protocol):
    """AdamW at each of `probe.attentive_rates`, cosine to zero; all start from the same weights."""

    name = "attentive"
    head = "attentive"
    frozen = True

    def fit(self, network: nn.Module, session: Session) -> Outcome:
        assert isinstance(session.task, ImageTask)
        assert isinstance(network, Attentive)
        task = session.task
        network.to(session.device)
        rows = {part: Rows(task, network, task.cases[part], session) for part in ("train", "val")}
        heads = Heads(network, task.config.probe.attentive_rates, task.config.optim.weight_decay)
        return fit_together(task, network, heads, session, rows)


class Heads(Candidates):
    """The head of the network once for each rate."""

    def __init__(self, network: Attentive, rates: list[float], weight_decay: float) -> None:
        super().__init__()
        self.rates, self.weight_decay = rates, weight_decay
        parts = {name: module for name, module in network.named_children() if name != "encoder"}
        self.heads = nn.ModuleList(nn.ModuleDict(copy.deepcopy(parts)) for _ in rates)

    def forward(self, rows: Tensor) -> Tensor:
        found = []
        for head in self.heads:
            assert isinstance(head, nn.ModuleDict)
            found.append(head["head"](head["out"](head["pool"](head["norm"](rows)))))
        return torch.stack(found)

    def optimiser(self, batch: int) -> torch.optim.Optimizer:
        groups = []
        for rate, head in zip(self.rates, self.heads, strict=True):
            named = list(head.named_parameters())
            for wanted in (True, False):
                chosen = [p for name, p in named if decays(name, p) is wanted]
                groups.append({"params": chosen, "peak": rate, "weight_decay": self.weight_decay * wanted})
        return torch.optim.AdamW(groups, lr=0.0)

    def head(self, index: int) -> dict[str, Tensor]:
        return dict(self.heads[index].named_parameters())

    def described(self, index: int) -> dict[str, Any]:
        return {"rate": self.rates[index]}
