"""What every metric is called, its unit, its bounds and its better direction, for statistics and reports."""

from __future__ import annotations

from dataclasses import dataclass

from .retrieval import RETRIEVAL


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """How a metric is printed and compared."""

    label: str
    higher_is_better: bool
    unit: str = ""
    digits: int = 3
    bounds: tuple[float, float | None] = (0.0, 1.0)
    compared: bool = True  # between arms; not where a best value has no better side (a slope of 1)


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
    "qwk": MetricInfo("Weighted kappa", True, bounds=(-1.0, 1.0)),
    "grade_error": MetricInfo("Grade error", False, bounds=(0.0, None)),
    "rps": MetricInfo("RPS", False),
    "mae": MetricInfo("MAE", False, bounds=(0.0, None)),
    "rmse": MetricInfo("RMSE", False, bounds=(0.0, None)),
    "r2": MetricInfo("R²", True, bounds=(-1.0, 1.0)),
    "pearson": MetricInfo("Pearson r", True, bounds=(-1.0, 1.0)),
    "bias": MetricInfo("Bias", False, bounds=(0.0, None), compared=False),
    "calibration_slope": MetricInfo("Calibration slope", True, bounds=(0.0, None), compared=False),
    "absolute_error": MetricInfo("Absolute error", False, bounds=(0.0, None)),
    "map": MetricInfo("mAP", True),
    "ap50": MetricInfo("AP50", True),
    "ap10": MetricInfo("AP10", True),
    "froc": MetricInfo("FROC", True),
    "image_ap50": MetricInfo("AP50 of the image", True),
    **{name: MetricInfo(name.replace("map", "mAP"), True) for name in RETRIEVAL},
}


def info(metric: str) -> MetricInfo:
    """How a metric is printed and compared; an unknown one counts as higher is better."""
    return METRICS.get(metric, MetricInfo(metric, True, bounds=(0.0, None)))
