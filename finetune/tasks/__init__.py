"""Kinds of tasks by name. A new kind is a file here and a line in `TASKS`; a new task is a YAML record."""

from __future__ import annotations

from ..record import SplitRule, TaskRecord
from .base import Task
from .classification import Classification
from .segmentation import Segmentation

__all__ = ["TASKS", "Classification", "Segmentation", "SplitRule", "Task", "TaskRecord"]

TASKS: dict[str, type[Task]] = {"classification": Classification, "segmentation": Segmentation}
