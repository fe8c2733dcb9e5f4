"""Where numbers go: metrics.jsonl is the authority; W&B, TensorBoard or MLflow mirror it (docs/tracking.md).

What leaves the machine: numbers, panels, the configuration without folders, hashes of what was read and made.
No host name, user name, path or sample key.
"""

from . import lineage
from .base import Artifact
from .config import TrackingConfig
from .journal import METRICS, Journal, of_last_start, read_rows, rows_of
from .privacy import public
from .tracker import Tracker, group_of

__all__ = [
    "METRICS", "Artifact", "Journal", "Tracker", "TrackingConfig", "group_of", "lineage", "of_last_start",
    "public", "read_rows", "rows_of",
]  # fmt: skip
