"""Runs of a W&B sweep: every run of an agent has the same command line, so each gets a folder of its own."""

from __future__ import annotations

import os
from pathlib import Path


def own_folder(folder: Path) -> Path:
    """`folder` with the id of the sweep's run behind it; `folder` itself outside a sweep."""
    run = os.environ.get("WANDB_RUN_ID")
    return folder.with_name(f"{folder.name}-{run}") if run and os.environ.get("WANDB_SWEEP_ID") else folder
