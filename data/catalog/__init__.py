"""Facts about 1,314 public medical image datasets, their relations and terms. Start with `load()`.

Nothing here imports numpy or torch: loading takes some 30 ms, so that commands answer at once.
"""

from __future__ import annotations

from .catalog import Catalog
from .load import load
from .records import Basis, Dataset, MedMnistSet, MsdTask, Overlap

__all__ = ["Basis", "Catalog", "Dataset", "MedMnistSet", "MsdTask", "Overlap", "load"]
