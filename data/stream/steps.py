"""Which positions an optimiser step reads, and which of them a rank: arithmetic on the step alone.

Equal batches on every rank come from arithmetic, not from communication: no rank can run out of data before
another. The price: the global batch must divide by ranks x micro-batches, which is checked when a run starts.

A run may mix K shape classes (2D and 3D, or several crop sizes). One step has one class on all ranks, dealt
by the shares of the classes (`mixing.Turns`). Each class counts positions of its own, 0, 1, 2, ...; the run
calls them position x K + class, so that no two classes share a draw, and a single class keeps its numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch.utils.data import Sampler

from ..errors import ConfigError
from .config import StreamConfig
from .mixing import Turns


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """The global batches of a run: step -> positions.

    Args:
        batch_sizes: samples of a step of each class, over all ranks and micro-batches.
        shares: of the steps, by class, any positive numbers.
        base_step: where these batch sizes began to count.
        base: class-local positions trained on before `base_step`; empty: none.
    """

    batch_sizes: tuple[int, ...]
    shares: tuple[float, ...] = (1.0,)
    base_step: int = 0
    base: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: StreamConfig) -> StepPlan:
        """The plan of a run that begins."""
        return cls(batch_sizes=tuple(part.batch_size for part in config.each()), shares=config.shares)

    @cached_property
    def _turns(self) -> Turns | None:
        return Turns(self.shares) if len(self.shares) > 1 else None

    def class_of(self, step: int) -> int:
        """The shape class of optimiser step `step` (0 is the first)."""
        return 0 if self._turns is None else int(self._turns.at(np.asarray([step]))[0][0])

    def steps_by_class(self, step: int) -> list[int]:
        """How many of the steps before `step` each class has."""
        return [step] if self._turns is None else self._turns.counts(step).tolist()

    def steps_until(self, steps_by_class: Sequence[int]) -> int:
        """The fewest steps in which each class has at least so many."""
        return steps_by_class[0] if self._turns is None else self._turns.reach(steps_by_class)

    def consumed(self, step: int) -> list[int]:
        """Class-local positions trained on before `step`, over all ranks."""
        now, then = self.steps_by_class(step), self.steps_by_class(self.base_step)
        base = self.base or (0,) * len(self.batch_sizes)
        return [b + (n - t) * size for b, n, t, size in zip(base, now, then, self.batch_sizes, strict=True)]

    def samples(self, step: int) -> int:
        """Samples trained on before `step`, over all classes and ranks."""
        return sum(self.consumed(step))

    def positions(self, step: int) -> range:
        """The global batch of `step`, all of one class."""
        k, kind = len(self.batch_sizes), self.class_of(step)
        first = self.consumed(step)[kind]
        return range(first * k + kind, (first + self.batch_sizes[kind]) * k + kind, k)

    def resumed(self, step: int, consumed: Sequence[int]) -> StepPlan:
        """This plan for a run that has trained on so many positions of each class before `step`."""
        return replace(self, base_step=step, base=tuple(consumed))


def rank_share(batch: range, rank: int, world: int) -> range:
    """The part of a global batch that `rank` reads: the ranks' parts partition it."""
    return batch[len(batch) * rank // world : len(batch) * (rank + 1) // world]


class PositionBatches(Sampler[list[int]]):
    """Micro-batches of positions for one rank, from `start_step` up to `steps`.

    The ranks' batches of a step partition the global batch, whatever their number, all of the same size.

    Args:
        plan: the global batches.
        steps: end of the run; its first step is 0.
        accumulate: micro-batches a step on each rank.

    Raises:
        ConfigError: a global batch does not divide by ranks x micro-batches.
    """

    def __init__(
        self, plan: StepPlan, *, rank: int, world: int, start_step: int, steps: int, accumulate: int = 1
    ) -> None:
        parts = world * accumulate
        for batch in plan.batch_sizes:
            if batch % parts:
                near = max(parts, round(batch / parts) * parts)
                raise ConfigError(
                    f"data.batch_size {batch} does not divide by {world} ranks x {accumulate} "
                    f"micro-batches: set data.batch_size={near}"
                )
        if not 0 <= rank < world:
            raise ConfigError(f"rank {rank} does not exist among {world} ranks")
        self.plan, self.rank, self.world = plan, rank, world
        self.start_step, self.steps, self.accumulate = start_step, steps, accumulate

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start_step, self.steps):
            mine = rank_share(self.plan.positions(step), self.rank, self.world)
            size = len(mine) // self.accumulate
            for first in range(0, len(mine), size):
                yield list(mine[first : first + size])
