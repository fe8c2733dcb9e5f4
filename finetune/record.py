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
from .metrics import ORDINAL, REGRESSION, RETRIEVAL

KINDS = ("classification", "multilabel", "ordinal", "regression", "retrieval", "segmentation", "detection")
WHOLE = ("classification", "multilabel", "ordinal", "regression", "retrieval")  # one thing said of an image
SPLIT_RULES = ("declared", "by_subject")
METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("auc", "accuracy", "balanced_accuracy", "brier", "ece"),
    "multilabel": ("auc", "average_precision", "accuracy", "balanced_accuracy", "brier"),
    "ordinal": (*ORDINAL, "auc", "accuracy", "balanced_accuracy", "brier", "ece"),
    "regression": tuple(REGRESSION),
    "retrieval": RETRIEVAL,
    "segmentation": ("dice", "iou", "nsd", "hd95", "assd"),
    "detection": ("map", "ap50", "ap10", "froc"),
}
_DEFAULT_METRICS: dict[str, list[str]] = {
    "classification": ["auc", "accuracy", "balanced_accuracy"],
    "multilabel": ["auc", "average_precision", "accuracy"],
    "ordinal": ["qwk", "grade_error", "auc", "accuracy"],
    "regression": ["mae", "rmse", "r2", "calibration_slope"],
    "retrieval": ["map@10", "recall@1", "recall@5", "precision@10"],
    "segmentation": ["dice", "nsd", "hd95"],
    "detection": ["map", "ap50", "froc"],
}
# Where reference boxes come from: the source's boxes and outlines named in `classes`; the connected parts of
# each mask value in `structures`; each mask value is one object of the only class.
BOXES = ("shapes", "components", "instances")


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
    kind: str = MISSING  # one of KINDS
    source: dict[str, Any] = field(default_factory=dict)  # one entry of a collection's `sources`
    # Classes in the order of the outputs; findings of multilabel; grades of ordinal, the lowest first.
    classes: list[str] = field(default_factory=list)
    label: str = "class"  # which label of an image is predicted; see docs/tasks.md
    unit: str = ""  # regression: of the number, e.g. years
    structures: dict[int, str] = field(default_factory=dict)  # segmentation: mask value -> name, without 0
    boxes: str = "shapes"  # detection: where the boxes come from, see BOXES
    # detection: IoU thresholds of `map`, the first also of `froc`; empty: 0.50 to 0.95 as COCO in 2D, 0.10 to
    # 0.50 as nnDetection in 3D, by 0.05
    iou: list[float] = field(default_factory=list)
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
    # Labels by which scores are also told, beside sex, age, scanner and site (subgroups.py)
    subgroups: list[str] = field(default_factory=list)
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
        if len(self.classes) == 1 and self.kind in ("classification", "ordinal", "retrieval"):
            raise ConfigError(f"task {self.name}: classes: {self.kind} needs at least two classes")
        if len(set(self.classes)) != len(self.classes):
            raise ConfigError(f"task {self.name}: classes: a class is listed twice")
        if self.kind == "segmentation" and not self.structures:
            raise ConfigError(f"task {self.name}: structures: map mask values to names, e.g. {{1: liver}}")
        if self.kind == "detection":
            self._check_boxes()
        if any(value < 1 for value in self.structures):
            raise ConfigError(f"task {self.name}: structures: values start at 1; 0 is the background")
        known = METRICS[self.kind]
        self.metrics = self.metrics or list(_DEFAULT_METRICS[self.kind])
        for metric in self.metrics:
            if metric not in known:
                raise ConfigError(f"task {self.name}: metrics: unknown {metric!r}{nearest(metric, known)}")

    def _check_boxes(self) -> None:
        if self.boxes not in BOXES:
            raise ConfigError(f"task {self.name}: boxes: unknown {self.boxes!r}{nearest(self.boxes, BOXES)}")
        if self.boxes == "components" and not self.structures:
            raise ConfigError(f"task {self.name}: structures: map mask values to names, e.g. {{2: tumour}}")
        if self.boxes != "components" and not self.classes:
            raise ConfigError(f"task {self.name}: classes: name what the boxes hold, e.g. [nodule]")
        if self.boxes == "instances" and len(self.classes) > 1:
            raise ConfigError(
                f"task {self.name}: classes: a mask of instances does not say which class an object has: "
                "give one class, or boxes: components and structures"
            )
        if any(not 0 < value < 1 for value in self.iou) or sorted(self.iou) != self.iou:
            raise ConfigError(f"task {self.name}: iou: {self.iou}: give ascending thresholds in (0, 1)")

    @property
    def dataset(self) -> str:
        """Dataset id of the source."""
        return str(self.source["dataset"])

    @property
    def outputs(self) -> int:
        """Number of output channels: classes (a number has one), or structures and the background."""
        if self.kind == "regression":
            return 1
        return len(self.classes) if self.kind in WHOLE else len(self.structures) + 1

    @property
    def names(self) -> list[str]:
        """Names of the outputs; a segmentation starts with the background."""
        if self.kind in WHOLE:
            return list(self.classes)
        if self.kind == "detection" and self.boxes != "components":
            return list(self.classes)
        if self.kind == "detection":
            return [self.structures[value] for value in sorted(self.structures)]
        return ["background", *(self.structures[value] for value in sorted(self.structures))]
