"""Metrics: overlap, surface, classification; an explicit policy for empty structures."""

from __future__ import annotations

from .cases import DEFAULT_METRICS, CaseRow, EmptyPolicy, segmentation_case
from .classification import CLASSIFICATION
from .info import METRICS, MetricInfo

__all__ = [
    "CLASSIFICATION",
    "DEFAULT_METRICS",
    "METRICS",
    "CaseRow",
    "EmptyPolicy",
    "MetricInfo",
    "segmentation_case",
]
