"""What the random transforms share: keyed draws, and computing only the samples that were drawn.

A draw is a pure function of (seed, stream, position), so the host can know it before the device does. Where
the positions lie on the CPU, whether the images do or not, the host draws, sends a few numbers a sample and
names the drawn rows; the device then computes those rows alone, and nobody waits for anybody. Positions on
a GPU are drawn there; every sample is then computed and `where` keeps the drawn ones, because to count them
would be to wait. Both ways give the same views. The saving is the probability itself: an affine map with
p = 0.2 costs a fifth.

Nothing here, nor in any transform of this package, reads a number back from the device, makes a tensor from
a Python list (a copy that waits) or indexes with a mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...data.draws import uniform, uniform_torch


@dataclass(frozen=True, slots=True)
class Choice:
    """Which samples of a batch a transform touches."""

    on: Tensor  # bool [B], on the device of the images
    rows: np.ndarray | None  # int64, ascending: a superset of them, known to the host; None: unknown
    certain: bool = False  # `rows` are exactly the samples of `on`


@dataclass(frozen=True, slots=True)
class Draws:
    """Uniform numbers in [0, 1) of one transform: column 0 decides, the others are its parameters."""

    u: Tensor  # float32 [B, n], on the device of the images
    host: np.ndarray | None  # the same numbers where the host has drawn them

    def below(self, probability: float, only: Tensor | None = None) -> Choice:
        """The samples whose first number is below `probability` and that `only` (bool [B]) allows."""
        on = self.u[:, 0] < probability
        chosen = None if self.host is None else self.host[:, 0] < np.float32(probability)
        if only is not None:
            only = on_device(only, on.device)
            on = on & only
            if chosen is not None and only.device.type == "cpu":
                chosen, only = chosen & only.numpy(), None
        if chosen is None:
            return Choice(on, None)
        return Choice(on, np.flatnonzero(chosen), certain=only is None)


def draw(x: Tensor, seed: int, stream: str, positions: Tensor, n: int) -> Draws:
    """`n` numbers a sample for images x.

    Raises:
        TypeError: x is not float32, which all views compute in.
    """
    require_float32(x)
    if not _on_host(positions):
        return Draws(uniform_torch(seed, stream, positions, n, x.device).to(torch.float32), None)
    host = uniform(seed, stream, positions.numpy(), n).astype(np.float32)
    return Draws(on_device(torch.from_numpy(host), x.device), host)


def sometimes(x: Tensor, choice: Choice, change: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """`change(x, *parameters)` for the chosen samples; the others come back bit for bit.

    Args:
        change: keeps the shape and treats every sample by itself.
        parameters: [B, ...] each, cut to the computed rows as x is.
    """
    if choice.rows is not None and len(choice.rows) == 0:
        return x
    part, cut = _rows(choice.rows, x, parameters)
    changed = change(part, *cut)
    if not choice.certain:
        on = _rows(choice.rows, choice.on, ())[0]
        changed = torch.where(per_sample(on, changed), changed, part)
    if choice.rows is None or len(choice.rows) == len(x):
        return changed
    return x.index_copy(0, _index(choice.rows, x.device), changed)


def either(
    x: Tensor,
    choice: Choice,
    yes: Callable[..., Tensor],
    no: Callable[..., Tensor],
    *parameters: Tensor,
) -> Tensor:
    """`yes` for the chosen samples, `no` for the others; both may change the shape, and to the same one."""
    if choice.rows is None or not choice.certain:
        first, second = yes(x, *parameters), no(x, *parameters)
        return torch.where(per_sample(choice.on, first), first, second)
    if len(choice.rows) in (0, len(x)):
        return (yes if len(choice.rows) else no)(x, *parameters)
    rest = np.setdiff1d(np.arange(len(x)), choice.rows)
    parts = []
    for rows, change in ((choice.rows, yes), (rest, no)):
        part, cut = _rows(rows, x, parameters)
        parts.append(change(part, *cut))
    order = np.argsort(np.concatenate([choice.rows, rest]))
    return torch.cat(parts).index_select(0, _index(order, x.device))


def require_float32(x: Tensor) -> None:
    """Refuse images of another dtype. Raises TypeError."""
    if x.dtype != torch.float32:
        raise TypeError(f"views compute in float32, the images are {x.dtype}: cast before, or after the view")


def on_device(x: Tensor, device: torch.device) -> Tensor:
    """x on `device`; the host does not wait for the copy."""
    return x if x.device == device else x.to(device, non_blocking=True)


def per_sample(parameter: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, ...], to multiply with x."""
    return parameter.view(-1, *[1] * (x.ndim - 1))


def between(u: Tensor, limits: Sequence[float]) -> Tensor:
    """Uniform in [low, high] from uniform numbers in [0, 1)."""
    return limits[0] + (limits[1] - limits[0]) * u


def log_between(u: Tensor, limits: Sequence[float]) -> Tensor:
    """Log-uniform in [low, high] from uniform numbers in [0, 1)."""
    return torch.exp(between(u, (math.log(limits[0]), math.log(limits[1]))))


def _on_host(positions: Tensor) -> bool:
    return positions.device.type == "cpu"


def _rows(
    rows: np.ndarray | None, x: Tensor, parameters: Sequence[Tensor]
) -> tuple[Tensor, Sequence[Tensor]]:
    if rows is None or len(rows) == len(x):
        return x, parameters
    index = _index(rows, x.device)
    return x.index_select(0, index), [
        p.index_select(0, index if p.device == x.device else _index(rows, p.device)) for p in parameters
    ]


def _index(rows: np.ndarray, device: torch.device) -> Tensor:
    return on_device(torch.from_numpy(np.ascontiguousarray(rows, np.int64)), device)
