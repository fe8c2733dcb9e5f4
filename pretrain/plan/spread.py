"""A configuration on any number of devices: its layouts, times and memory, over all its shape classes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from ..config import PretrainConfig
from ..scale.sharding import half_gather
from .count import Cost
from .devices import Device
from .model import Layout, Pace, Times, memory, times

FILL = 0.9  # of the memory that a step may take; the runtime and fragments need the rest


class Model:
    """The costs of a configuration under one set of assumptions, for any number of devices."""

    def __init__(self, config: PretrainConfig, costs: Sequence[Cost], device: Device, precision: str) -> None:
        self.config, self.costs, self.device = config, list(costs), device
        self.half = half_gather(precision)
        self.batches = [part.batch_size for part in config.data.each()]
        self.shares = [share / sum(config.data.shares) for share in config.data.shares]
        self.moments = 2 if config.optim.name == "adamw" else 1
        self.least = max(cost.least for cost in self.costs)

    def why_not(self, ranks: int, strategy: str) -> str | None:
        """Why so many ranks cannot train this configuration; None where they can.

        Ranks of which there are fewer than `trainer.shard_size` share one copy, so that a line for them is
        there to compare with.
        """
        uneven = [batch for batch in self.batches if batch % ranks]
        if uneven:
            return f"the batch of {uneven[0]} does not divide"
        share, shard = min(self.batches) // ranks, self.config.trainer.shard_size or 1
        if share < self.least:
            return f"{share} samples a device are fewer than the {self.least} that the objective needs"
        if strategy == "fsdp2" and ranks > shard and ranks % shard:
            return f"trainer.shard_size {shard} does not divide"
        return None

    def layouts(self, ranks: int, per_node: int, strategy: str, accumulate: int) -> list[Layout]:
        """One layout a shape class."""
        return [Layout(ranks=ranks, per_node=per_node, strategy=strategy, accumulate=accumulate,
                       micro=batch // ranks // accumulate, shard=self.config.trainer.shard_size)
                for batch in self.batches]  # fmt: skip

    def times(self, layouts: Sequence[Layout], pace: Pace) -> Times:
        """A step, on average over the shape classes."""
        found = [
            times(cost, layout, self.device, pace, half_gather=self.half)
            for cost, layout in zip(self.costs, layouts, strict=True)
        ]
        names = [f.name for f in dataclasses.fields(Times)]
        mean = {name: sum(share * getattr(t, name) for share, t in zip(self.shares, found, strict=True))
                for name in names}  # fmt: skip
        return Times(**mean)

    def memory(self, layouts: Sequence[Layout]) -> dict[str, float]:
        """Of the shape class that needs most."""
        found = [memory(cost, layout, moments=self.moments, half_gather=self.half)
                 for cost, layout in zip(self.costs, layouts, strict=True)]  # fmt: skip
        return max(found, key=lambda parts: sum(parts.values()))

    def accumulation(self, ranks: int, per_node: int, strategy: str) -> tuple[int, bool]:
        """The fewest micro-batches with which a step fits, and whether any does."""
        share, most = math.gcd(*(batch // ranks for batch in self.batches)), 1
        for accumulate in (n for n in range(1, share + 1) if share % n == 0):
            if min(self.batches) // ranks // accumulate < self.least:
                break
            most = accumulate
            needed = sum(self.memory(self.layouts(ranks, per_node, strategy, accumulate)).values())
            if needed <= FILL * self.device.bytes:
                return accumulate, True
        return most, False
