"""New images through a finished run: what is found, read, predicted and written (`medloom predict`)."""

from __future__ import annotations

from .predict import Predicted, predict

__all__ = ["Predicted", "predict"]
