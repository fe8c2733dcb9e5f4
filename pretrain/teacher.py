"""A teacher: copies of modules that follow their originals as an exponential moving average.

Weights only, in float32: a step of 1 - momentum = 0.0004 is below the resolution of half precision, where
an average never moves. Running statistics of batch norms are the teacher's own (they see the teacher's
activations), other buffers are copied. Stochastic depth and dropout are off in a teacher, whatever mode the
run is in. The price is the memory of one more set of weights; no optimiser state and no gradients.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .scale.sharding import local


class Teacher(nn.Module):
    """Averages of named modules, reachable as attributes: `Teacher(encoder=encoder, head=head).encoder`."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, copy.deepcopy(module))
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Teacher:
        """Evaluation mode for everything but batch norms, which follow `mode`."""
        super().train(False)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.train(mode)
        return self

    @torch.no_grad()
    def update(self, momentum: float, **modules: nn.Module) -> None:
        """weight <- momentum · weight + (1 - momentum) · weight of the original, for the named modules.

        Raises:
            TypeError: an average in half precision, which would never move.
        """
        for name, module in modules.items():
            own = dict(self.get_submodule(name).named_parameters())
            theirs = dict(module.named_parameters())
            averages: list[Tensor] = [local(own[key].detach()) for key in theirs]
            wrong = next((a.dtype for a in averages if a.dtype.itemsize < 4), None)
            if wrong is not None:
                raise TypeError(f"the teacher's {name} is {wrong}: an average needs float32")
            originals: list[Tensor] = [local(p.detach()) for p in theirs.values()]
            torch._foreach_lerp_(averages, originals, 1.0 - momentum)
            _copy_buffers(self.get_submodule(name), module)


def _copy_buffers(teacher: nn.Module, original: nn.Module) -> None:
    for (_, a), (_, b) in zip(teacher.named_modules(), original.named_modules(), strict=True):
        if isinstance(a, _BatchNorm):
            continue
        pairs: list[tuple[Tensor, Tensor]] = list(zip(a.buffers(False), b.buffers(False), strict=True))
        for mine, theirs in pairs:
            mine.copy_(theirs)
