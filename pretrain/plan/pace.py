"""How fast a device computes: fitted to measured runs, else a share of its peak; how far the model is off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...data.errors import ConfigError
from .count import count
from .devices import Device
from .measured import Measured
from .model import Layout, Pace
from .spread import Model


@dataclass(frozen=True, kw_only=True)
class Check:
    """A measured run beside what the model says of it."""

    run: str
    ranks: int
    batch: int
    micro: int
    measured: float  # seconds of a step without the wait for data
    predicted: float
    fitted: bool  # the model's pace was taken from this run

    @property
    def error(self) -> float:
        """Share of the measured time."""
        return self.predicted / self.measured - 1


def calibrate(
    model: Model, device: Device, precision: str, share: float, measured: Sequence[Measured], per_node: int
) -> tuple[Pace, str, list[Check]]:  # fmt: skip
    """How fast a device computes, where that is known from, and the measured runs beside the model.

    Args:
        model: of the planned configuration; a measured run may be of another one.
        share: of the device's peak, where nothing was measured.

    Raises:
        ConfigError: nothing was measured, and the device has no peak in this precision.
    """
    if not measured:
        peak = device.peak(precision)
        if peak <= 0:
            raise ConfigError(
                f"{device.name}: no peak for {precision}: give {'bf16' if precision[:2] != '32' else 'fp32'}"
                "_tflops in the file, or --measured RUN"
            )
        where = f"assumed {100 * share:.0f} % of {peak / 1e12:.0f} TFLOP/s ({precision}, data sheet)"
        return Pace(rate=share * peak), where, []
    points = [_Point.of(run, device, per_node) for run in measured]
    fewest = min(run.ranks for run in measured)
    base = [point for point in points if point.run.ranks == fewest]
    pace = _fit(base)
    checks = [
        Check(run=p.run.name, ranks=p.run.ranks, batch=p.model.batches[0], micro=p.layouts[0].micro,
              measured=p.run.working, predicted=p.model.times(p.layouts, pace).step, fitted=p in base)
        for p in points
    ]  # fmt: skip
    runs = ", ".join(point.run.name for point in base)
    where = f"measured on {fewest} rank{'s' if fewest > 1 else ''} ({base[0].run.device}): {runs}"
    return pace, where, checks


@dataclass(frozen=True, eq=False)
class _Point:
    """A measured run, its own costs, and how it was spread out."""

    run: Measured
    model: Model
    layouts: list[Layout]

    @classmethod
    def of(cls, run: Measured, device: Device, per_node: int) -> _Point:
        """Count the run's own configuration."""
        trainer = run.config.trainer
        costs = count(run.config, precision=run.precision)
        model = Model(run.config, costs, device, run.precision)
        strategy = "fsdp2" if trainer.strategy == "fsdp2" else "ddp"
        return cls(run, model, model.layouts(run.ranks, per_node, strategy, trainer.accumulate))

    def micro(self) -> tuple[float, float]:
        """(operations, seconds) of a micro-batch: the step without its modelled optimiser and exchanges."""
        model, parts = self.model, self.layouts[0].accumulate
        work = sum(share * cost.operations.at(layout.micro) for share, cost, layout
                   in zip(model.shares, model.costs, self.layouts, strict=True))  # fmt: skip
        seconds = self.run.working / parts
        for _ in range(20):  # what is exposed depends on how long the computing takes
            other = model.times(self.layouts, Pace(rate=math.inf, fixed=seconds))
            seconds = max(1e-9, (self.run.working - other.optimiser - other.exposed) / parts)
        return work, seconds


def _fit(points: Sequence[_Point]) -> Pace:
    """Seconds = fixed + operations / rate, by least squares of the relative error.

    Where all have one size, or the line would start below 0, there is no fixed part.
    """
    data = [point.micro() for point in points]
    if len({round(x) for x, _ in data}) > 1:
        fixed, slope = line(data)
        if slope > 0 and fixed >= 0:
            return Pace(rate=1 / slope, fixed=fixed)
    rates = [x / y for x, y in data]
    return Pace(rate=sum(rates) / len(rates))


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(y at 0, slope) of the line through (x, y), by least squares of the relative error of y > 0."""
    weights = [1 / y**2 for _, y in points]
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
    mean_y = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / total
    spread = sum(w * (x - mean_x) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    slope = sum(w * (x - mean_x) * (y - mean_y) for w, (x, y) in zip(weights, points, strict=True)) / spread
    return mean_y - slope * mean_x, slope
