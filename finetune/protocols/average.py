"""An exponential moving average of the weights that are trained, validated and kept in their place.

Noise of the last steps averages out (Polyak); in short runs a fixed decay of 0.999 would still hold the first
weights, so the decay grows with the step, min(decay, (1 + t) / (10 + t)), as TensorFlow's does. Running
statistics of batch norms are averages themselves and are taken as they are. The price is one more set of
weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Averages of the parameters of `network` that require a gradient now."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.names = [name for name, p in network.named_parameters() if p.requires_grad]
        self.weights: list[Tensor] = [p.detach().clone() for p in self._own(network)]

    def _own(self, network: nn.Module) -> list[Tensor]:
        return [network.get_parameter(name) for name in self.names]

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """average <- decay * average + (1 - decay) * weight, after optimiser step `step` (the first is 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.weights, [p.detach() for p in self._own(network)], 1 - decay)

    @contextmanager
    def inside(self, network: nn.Module) -> Iterator[None]:
        """The network has the averages while this lasts."""
        own = self._own(network)
        current = [p.detach().clone() for p in own]
        try:
            self._copy(own, self.weights)
            yield
        finally:
            self._copy(own, current)

    def state_dict(self) -> dict[str, Tensor]:
        """Averages by parameter name."""
        return dict(zip(self.names, self.weights, strict=True))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Read what `state_dict` gave."""
        self._copy(self.weights, [state[name] for name in self.names])

    @staticmethod
    @torch.no_grad()
    def _copy(to: list[Tensor], source: list[Tensor]) -> None:
        for a, b in zip(to, source, strict=True):
            a.copy_(b)
