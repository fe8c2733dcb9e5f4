"""The task record: a held-out task is data (a YAML file), not code.

A record names one source in the collection's own words, what is to be predicted, how patients are split and
how the result is measured. The choice: everything that moves a score (split rule, tolerance, flips) is in the
record, so that two runs of the same record are comparable; what moves only the training (steps, rates) is in
`FinetuneConfig`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from ..data.errors import ConfigError, nearest

KINDS = ("classification", "segmentation")
SPLIT_RULES = ("declared", "by_subject")
METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("auc", "accuracy", "balanced_accuracy", "brier", "ece"),
    "segmentation": ("dice", "iou", "nsd", "hd95", "assd"),
}
_DEFAULT_METRICS: dict[str, list[str]] = {
    "classification": ["auc", "accuracy", "balanced_accuracy"],
    "segmentation": ["dice", "nsd", "hd95"],
}


@dataclass
class SplitRule:
    """How subjects are divided into train, val and test."""

    rule: str = "declared"  # declared: the source's own column or folders; by_subject: drawn here
    fractions: list[float] = field(
        default_factory=lambda: [0.7, 0.1, 0.2]
    )  # train, val, test of the subjects
    seed: int = 0  # of the draw; the split is published with the run in split.csv

    def __post_init__(self) -> None:
        if self.rule not in SPLIT_RULES:
            raise ConfigError(f"split.rule: unknown rule {self.rule!r}{nearest(self.rule, SPLIT_RULES)}")
        if len(self.fractions) != 3 or min(self.fractions) <= 0 or not math.isclose(sum(self.fractions), 1.0):
            raise ConfigError(
                f"split.fractions: {self.fractions}: give three positive numbers that add up to 1"
            )


@dataclass
class TaskRecord:
    """One held-out task."""

    name: str = MISSING
    kind: str = MISSING  # classification | segmentation
    source: dict[str, Any] = field(default_factory=dict)  # one entry of a collection's `sources`
    classes: list[str] = field(
        default_factory=list
    )  # classification: every class, in the order of the outputs
    label: str = "class"  # classification: which label of a record is the class
    structures: dict[int, str] = field(default_factory=dict)  # segmentation: mask value -> name, without 0
    nsd_tolerance_mm: float = 2.0  # of the surface Dice; pixels where the images have no spacing
    verified: bool = False  # whether the tolerance was checked against the task's own publication
    split: SplitRule = field(default_factory=SplitRule)
    patch: list[int] | None = None  # voxels that the network sees at once; None: planned
    spacing: list[float] | None = None  # mm to resample to; None: the median of the training cases
    image_size: int | None = None  # 2D: resize every image to this square; None: 224, or crops
    # Spatial axes from 0, (D, H, W) or (H, W), whose mirror image is as plausible. An axis whose direction
    # is part of the label (left and right lung, front and back of the hippocampus) stays out. Default: none.
    flips: list[int] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)  # empty: the usual ones of the kind
    related: list[str] = field(default_factory=list)  # other dataset ids that hold the same cases (leakage)
    salt: str | None = None  # of the keys; None: this machine's. Only data about nobody may state it here
    note: str = ""  # one sentence for the report

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(
                f"task {self.name}: kind: unknown kind {self.kind!r}{nearest(self.kind, KINDS)}"
            )
        if not self.source.get("dataset") or not self.source.get("layout"):
            raise ConfigError(f"task {self.name}: source: needs at least `dataset` and `layout`")
        if self.kind == "classification" and len(self.classes) < 2:
            raise ConfigError(f"task {self.name}: classes: a classification task lists at least two classes")
        if len(set(self.classes)) != len(self.classes):
            raise ConfigError(f"task {self.name}: classes: a class is listed twice")
        if self.kind == "segmentation" and not self.structures:
            raise ConfigError(f"task {self.name}: structures: map mask values to names, e.g. {{1: liver}}")
        if any(value < 1 for value in self.structures):
            raise ConfigError(f"task {self.name}: structures: values start at 1; 0 is the background")
        known = METRICS[self.kind]
        self.metrics = self.metrics or list(_DEFAULT_METRICS[self.kind])
        for metric in self.metrics:
            if metric not in known:
                raise ConfigError(f"task {self.name}: metrics: unknown {metric!r}{nearest(metric, known)}")

    @property
    def dataset(self) -> str:
        """Dataset id of the source."""
        return str(self.source["dataset"])

    @property
    def outputs(self) -> int:
        """Number of output channels: classes, or structures and the background."""
        return len(self.classes) if self.kind == "classification" else len(self.structures) + 1

    @property
    def names(self) -> list[str]:
        """Names of the outputs; a segmentation starts with the background."""
        if self.kind == "classification":
            return list(self.classes)
        return ["background", *(self.structures[value] for value in sorted(self.structures))]
