"""Kinds of tasks by name. A new kind is a file here and a line in `TASKS`; a new task is a YAML record."""

from __future__ import annotations

from ..record import SplitRule, TaskRecord
from .base import Task
from .classification import Classification
from .detection import Detection
from .multilabel import Multilabel
from .ordinal import Ordinal
from .regression import Regression
from .retrieval import Retrieval
from .segmentation import Segmentation

__all__ = ["TASKS", "Classification", "Segmentation", "SplitRule", "Task", "TaskRecord"]

_KINDS: tuple[type[Task], ...] = (
    Classification,
    Multilabel,
    Ordinal,
    Regression,
    Retrieval,
    Segmentation,
    Detection,
)
TASKS: dict[str, type[Task]] = {one.kind: one for one in _KINDS}
