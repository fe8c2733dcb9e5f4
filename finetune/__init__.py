"""Fine-tuning and evaluation on held-out tasks. Imports pretrain and data.

Public: `evaluate`. (Its module is called `evaluation`: one of the same name would hide the function as soon
as anything imported it.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["evaluate"]


def evaluate(run: str | Path, **options: Any) -> Path:
    """Score every arm of a fine-tuning run on its test split: see `evaluation.evaluate`."""
    from pathlib import Path

    from .evaluation import evaluate

    return evaluate(Path(run), **options)
