"""A linear layer on frozen features.

On images it is DINOv2's grid (arXiv 2304.07193, appendix B.3): peak rates x the last or the last four blocks
x with or without the mean patch token, all trained together on one pass of features, and one chosen on
validation. A segmentation has one layer on the tokens of every place, trained on augmented crops.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

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
    """Rates x readings of the features."""

    def __init__(self, network: LinearProbe, rates: list[float]) -> None:
        super().__init__()
        self.rates = rates
        self.readings = list(network.readings())
        columns = torch.stack(list(network.readings().values()))  # [S, W]
        self.register_buffer("columns", columns / network.std.cpu())
        self.register_buffer("mean", network.mean.cpu().clone())
        shape = (len(columns), network.head.out_features)
        self.weights = nn.ParameterList(torch.zeros(*shape, columns.shape[1]) for _ in rates)  # [S, K, W]
        self.biases = nn.ParameterList(torch.zeros(*shape) for _ in rates)

    def forward(self, rows: Tensor) -> Tensor:
        columns, mean = self.get_buffer("columns"), self.get_buffer("mean")
        x = (rows - mean)[:, None] * columns  # [B, S, W]
        weight, bias = torch.stack(list(self.weights)), torch.stack(list(self.biases))
        found = torch.einsum("bsw,rskw->rsbk", x, weight) + bias[:, :, None]
        return found.flatten(0, 1)

    def optimiser(self, batch: int) -> torch.optim.Optimizer:
        """SGD with momentum 0.9 and no decay; rates grow with the batch."""
        groups = [
            {"params": [weight, bias], "peak": rate * batch / _REFERENCE_BATCH}
            for rate, weight, bias in zip(self.rates, self.weights, self.biases, strict=True)
        ]
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)

    def head(self, index: int) -> dict[str, Tensor]:
        rate, reading = divmod(index, len(self.readings))
        read = (self.get_buffer("columns")[reading] > 0).float()
        return {"head.weight": self.weights[rate][reading] * read, "head.bias": self.biases[rate][reading]}

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
