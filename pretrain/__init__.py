"""Self-supervised pretraining: encoders, objectives, the training run. Imports data, never finetune.

Public: `load_encoder`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from .encoders.base import Encoder
    from .transfer import Report

__all__ = ["load_encoder"]


def load_encoder(name: str | Path, **options: Any) -> tuple[Encoder, Report]:
    """Load an encoder from a run folder, an artefact, a checkpoint or timm: see `weights.load_encoder`."""
    from .weights import load_encoder

    return load_encoder(name, **options)
