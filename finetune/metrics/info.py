"""What every metric is called, its unit, its bounds and its better direction, for statistics and reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """How a metric is printed and compared."""

    label: str
    higher_is_better: bool
    unit: str = ""
    digits: int = 3
    bounds: tuple[float, float | None] = (0.0, 1.0)


METRICS: dict[str, MetricInfo] = {
    "dice": MetricInfo("Dice", True),
    "iou": MetricInfo("IoU", True),
    "nsd": MetricInfo("NSD", True),
    "hd95": MetricInfo("HD95", False, "mm", 2, (0.0, None)),
    "hd": MetricInfo("Hausdorff", False, "mm", 2, (0.0, None)),
    "assd": MetricInfo("ASSD", False, "mm", 2, (0.0, None)),
    "masd": MetricInfo("MASD", False, "mm", 2, (0.0, None)),
    "auc": MetricInfo("AUC", True),
    "average_precision": MetricInfo("AP", True),
    "accuracy": MetricInfo("Accuracy", True),
    "balanced_accuracy": MetricInfo("Balanced accuracy", True),
    "brier": MetricInfo("Brier", False, bounds=(0.0, 2.0)),
    "ece": MetricInfo("ECE", False),
}
