"""Label efficiency: an encoder and its baselines at growing numbers of labelled subjects, in several draws.

Subsets are nested (a smaller one is part of a larger one of the same draw), by subject, class by class,
and the same for every encoder, because a draw depends on its number and on the order of the subjects'
names alone. With few labels the draw decides as much as the encoder: five draws of each size are the
default, and intervals are over patients and runs (hierarchy.py). Draw d runs with seed d, so a run
differs in subset, initial head and order of the examples; with all labels it differs in the seed alone.

Price: sizes x draws x arms trainings. Protocols that leave the encoder frozen share one cache of
features.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.errors import ConfigError
from .hierarchy import pooled, pooled_difference
from .metrics import info
from .report_inputs import Evaluation
from .statistics import Interval
from .verdict import OVERALL, headline_metric

logger = logging.getLogger(__name__)

SIZES = ("1%", "5%", "10%", "25%", "50%", "100%")
DRAWS = 5  # fewer are allowed and said
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """How many labels: a share of the training subjects, or subjects a class."""

    fraction: float = 1.0
    shots: int = 0  # 0: the fraction counts

    @property
    def name(self) -> str:
        """10% or 5-shot."""
        return f"{self.shots}-shot" if self.shots else f"{100 * self.fraction:g}%"

    @property
    def overrides(self) -> list[str]:
        """What `finetune` is told."""
        return [f"shots={self.shots}"] if self.shots else [f"fraction={self.fraction}"]


def parse_size(text: str) -> Size:
    """`10%` is a share of the training subjects, `5` (or `5-shot`) that many of each class.

    Raises:
        ConfigError: neither.
    """
    share = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    shots = re.fullmatch(r"(\d+)(?:-shot)?", text.strip())
    if share and 0 < float(share[1]) <= 100:
        return Size(float(share[1]) / 100)
    if shots and int(shots[1]) > 0:
        return Size(shots=int(shots[1]))
    raise ConfigError(f"size {text!r}: give a share such as 10%, or a number of subjects a class such as 5")


def run_curve(
    task: Path | str,
    dotlist: Sequence[str],
    out: Path,
    *,
    sizes: Sequence[Size],
    draws: int = DRAWS,
    progress: Progress | None = None,
) -> list[Path] | None:
    """Fine-tune and evaluate every size and draw under `out`; the same call continues a stopped one.

    Args:
        task, dotlist: as for `config.load_config`; fraction, shots, draw, seed and out are set here.

    Returns:
        The evaluation folders, or None when a signal stopped a run (its state is saved).

    Raises:
        ConfigError: no size, a size twice, or an override that the curve sets itself.
    """
    from .config import load_config
    from .evaluation import evaluate
    from .protocols import PROTOCOLS
    from .run import finetune, finished

    for key in ("fraction", "shots", "draw", "seed", "out"):
        if any(item.startswith(f"{key}=") for item in dotlist):
            raise ConfigError(f"{key}: a curve sets it; take it out")
    if not sizes or len(set(sizes)) != len(sizes) or draws < 1:
        raise ConfigError(f"{len(sizes)} sizes, {draws} draws: give each size once, and at least 1 draw")
    if draws < DRAWS:
        logger.warning("%d draws: with few labels at least %d tell how much the draw decides", draws, DRAWS)
    folders = []
    for size in sizes:
        for draw in range(draws):
            name = f"{size.name.replace('%', 'pct')}-{draw}"
            own = [f"out={out / 'runs' / name}", f"draw={draw}", f"seed={draw}", *size.overrides]
            config = load_config(task, [*dotlist, *own])
            if PROTOCOLS[config.protocol].frozen and config.features is None:
                config.features = str(out / "features")
            folder = finetune(config, progress=progress)
            if not finished(folder, config):
                return None
            folders.append(folder / "evaluation")
            if not (folders[-1] / "summary.json").is_file():
                evaluate(folder, progress=progress)
    return folders


@dataclass(frozen=True, slots=True)
class Point:
    """One arm, or the difference of the pretrained arm to a baseline, at one size."""

    size: Size
    subjects: float  # training subjects, mean over the runs
    arm: str
    value: Interval
    runs: int


@dataclass(slots=True)
class Curve:
    """One task, protocol and encoder over its sizes."""

    task: str
    protocol: str
    encoder: str
    metric: str
    points: list[Point] = field(default_factory=list)
    gaps: list[Point] = field(default_factory=list)  # `arm` is the baseline
    members: list[Evaluation] = field(default_factory=list)  # the smallest size first

    @property
    def arms(self) -> list[str]:
        """Arms that have points, in the order of the runs."""
        return list(dict.fromkeys(point.arm for point in self.points))


def size_of(evaluation: Evaluation) -> Size:
    """How many labels an evaluated run had."""
    shots = evaluation.summary.get("shots")
    return Size(shots=int(shots)) if shots else Size(float(evaluation.summary.get("fraction") or 1.0))


def curves(evaluations: Sequence[Evaluation]) -> list[Curve]:
    """A curve for every task, protocol, encoder and number of steps that was run at two sizes or more."""
    groups: dict[tuple[Any, ...], list[Evaluation]] = {}
    for evaluation in evaluations:
        said = evaluation.summary
        key = (
            evaluation.task,
            evaluation.protocol,
            said.get("encoder"),
            said.get("steps"),
            said.get("split"),
        )
        groups.setdefault(key, []).append(evaluation)
    found = []
    for (task, protocol, encoder, *_), members in groups.items():
        metric = _headline(members)
        if metric and len({size_of(member) for member in members}) > 1:
            members = sorted(members, key=lambda member: (_subjects([member]), _run(member)))
            curve = Curve(task, protocol, str(encoder or ""), metric, members=members)
            for size in dict.fromkeys(size_of(member) for member in members):
                _add(curve, size, [member for member in members if size_of(member) == size])
            found.append(curve)
    return found


def beside(found: Sequence[Curve], evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Evaluations to be told one by one: those of no curve, and of each curve one with the most labels."""
    inside = {id(member) for curve in found for member in curve.members}
    largest = set()
    for curve in found:
        most = size_of(curve.members[-1])
        largest.add(id(next(member for member in curve.members if size_of(member) == most)))
    return [e for e in evaluations if id(e) not in inside or id(e) in largest]


def _add(curve: Curve, size: Size, members: Sequence[Evaluation]) -> None:
    """Points of one size; a run without a value of an arm is left out of it."""
    subjects = _subjects(members)
    arms = list(dict.fromkeys(arm for member in members for arm in member.arms))
    values = {arm: {_run(m): v for m in members if (v := _value(m, arm, curve.metric))} for arm in arms}
    for arm, runs in values.items():
        if runs:
            observed, draws = _stacked(list(runs.values()))
            curve.points.append(Point(size, subjects, arm, pooled(observed, draws), len(runs)))
    for arm in arms:
        both = [run for run in values.get("pretrained", {}) if run in values[arm]]
        if arm != "pretrained" and both:
            first, second = (_stacked([values[name][run] for run in both]) for name in ("pretrained", arm))
            gap = pooled_difference(first[0], second[0], first[1], second[1])
            curve.gaps.append(Point(size, subjects, arm, gap, len(both)))


def _stacked(runs: Sequence[tuple[float, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([value for value, _ in runs]), np.stack([draws for _, draws in runs])


def _value(evaluation: Evaluation, arm: str, metric: str) -> tuple[float, np.ndarray] | None:
    """Mean of an arm over its structures, and its draws; without draws there is no interval."""
    scores = [score for score in evaluation.arms.get(arm, []) if score.metric == metric]
    whole = [score.mean for score in scores if score.structure in OVERALL] or [s.mean for s in scores]
    if len(whole) != 1 or not np.isfinite(whole[0]):
        return None
    draws = evaluation.draws.get(f"{arm}|{metric}")
    return whole[0], np.full(1, np.nan) if draws is None else draws.astype(float)


def _headline(members: Sequence[Evaluation]) -> str | None:
    scored = [score.metric for member in members for rows in member.arms.values() for score in rows]
    usable = (metric for metric in scored if info(metric).compared)
    return headline_metric(members[0].kind, scored) or next(usable, None)


def _run(member: Evaluation) -> tuple[int, int]:
    return int(member.summary.get("draw") or 0), int(member.summary.get("seed") or 0)


def _subjects(members: Sequence[Evaluation]) -> float:
    counts = [(member.summary.get("n") or {}).get("train", {}).get("subjects", 0) for member in members]
    return float(np.mean(counts))
