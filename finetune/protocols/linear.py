"""A linear layer on frozen features.

On images it is DINOv2's grid (arXiv 2304.07193, appendix B.3): peak rates x the last or the last four blocks
x with or without the mean patch token, all trained together on one pass of features, and one chosen on
validation. A segmentation has one layer on the tokens of every place, trained on augmented crops.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..probes import LinearProbe
from ..tasks.images import ImageTask
from .base import Outcome, Protocol, Session
from .gradient import optimise
from .phases import head_alone
from .rows import Candidates, Rows, fit_together

_REFERENCE_BATCH = 256


class Linear(Protocol):
    """See the module docstring."""

    name = "linear"
    head = "linear"
    frozen = True

    def fit(self, network: nn.Module, session: Session) -> Outcome:
        if not isinstance(network, LinearProbe):
            return optimise(network, session, pretrained=True, phases=head_alone)
        assert isinstance(session.task, ImageTask)
        network.to(session.device)
        rows = {
            part: Rows(session.task, network, session.task.cases[part], session) for part in ("train", "val")
        }
        _standardise(network, rows["train"])
        grid = Grid(network, session.task.config.probe.rates)
        return fit_together(session.task, network, grid, session, rows)


class Grid(Candidates):
    """Rates x readings of the features; one product a reading serves all of its rates.

    A head at rate r is sqrt(r) times what is trained at rate 1: its gradient has the same factor, so that SGD
    without decay takes the very steps that it would take at r.
    """

    def __init__(self, network: LinearProbe, rates: list[float]) -> None:
        super().__init__()
        self.rates, self.outputs = rates, network.head.out_features
        self.readings = list(network.readings())
        self.columns = [columns.nonzero()[:, 0] for columns in network.readings().values()]
        self.register_buffer("mean", network.mean.detach().clone())
        self.register_buffer("std", network.std.detach().clone())
        self.register_buffer("root", torch.tensor(rates).sqrt())
        rows = len(rates) * self.outputs
        self.weights = nn.ParameterList(torch.zeros(rows, len(columns)) for columns in self.columns)
        self.biases = nn.ParameterList(torch.zeros(rows) for _ in self.columns)

    def forward(self, rows: Tensor) -> Tensor:
        x = (rows - self.get_buffer("mean")) / self.get_buffer("std")
        root = self.get_buffer("root")[:, None]
        found = []
        for columns, weight, bias in zip(self.columns, self.weights, self.biases, strict=True):
            outputs = functional.linear(x[:, columns.to(x.device)], weight, bias)
            found.append(outputs.unflatten(1, (len(self.rates), self.outputs)) * root)
        return torch.stack(found).permute(2, 0, 1, 3).flatten(0, 1)

    def optimiser(self, batch: int) -> torch.optim.Optimizer:
        """SGD with momentum 0.9 and no decay; rates grow with the batch."""
        groups = [{"params": list(self.parameters()), "peak": batch / _REFERENCE_BATCH}]
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)

    def head(self, index: int) -> dict[str, Tensor]:
        rate, reading = divmod(index, len(self.readings))
        root = self.get_buffer("root")[rate]
        own = slice(rate * self.outputs, (rate + 1) * self.outputs)
        weight = torch.zeros(self.outputs, len(self.get_buffer("mean")), device=root.device)
        weight[:, self.columns[reading].to(root.device)] = self.weights[reading][own] * root
        return {"head.weight": weight, "head.bias": self.biases[reading][own] * root}

    def described(self, index: int) -> dict[str, Any]:
        rate, reading = divmod(index, len(self.readings))
        blocks, token = self.readings[reading]
        return {"rate": self.rates[rate], "blocks": blocks, "mean_token": token}


def _standardise(network: LinearProbe, rows: Rows) -> None:
    """Mean and deviation of each column over the training cases."""
    count = len(rows.cases)
    values = torch.cat(
        [rows[range(start, min(start + 1024, count))] for start in range(0, count, 1024)]
    ).double()
    deviation = values.std(dim=0, correction=0)
    network.mean.copy_(values.mean(dim=0))
    network.std.copy_(torch.where(deviation < 1e-6, 1.0, deviation))
