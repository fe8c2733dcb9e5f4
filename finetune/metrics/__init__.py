"""Metrics: overlap and surface with a policy for empty structures; of classes, grades, numbers and ranks."""

from __future__ import annotations

from .cases import DEFAULT_METRICS, CaseRow, EmptyPolicy, segmentation_case
from .classification import CLASSIFICATION
from .info import METRICS, MetricInfo, info
from .ordinal import ORDINAL
from .regression import REGRESSION
from .retrieval import RETRIEVAL

__all__ = [
    "CLASSIFICATION",
    "DEFAULT_METRICS",
    "METRICS",
    "ORDINAL",
    "REGRESSION",
    "RETRIEVAL",
    "CaseRow",
    "EmptyPolicy",
    "MetricInfo",
    "info",
    "segmentation_case",
]
