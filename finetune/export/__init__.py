"""A trained arm for the outside world: ONNX, or a MONAI bundle, each checked against torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...data.errors import ConfigError, nearest

FORMS = ("onnx", "monai-bundle")


def export(run: Path, form: str, out: Path, *, arm: str = "pretrained") -> dict[str, Any]:
    """Write an arm of a run into `out` as `form`; returns the comparison with torch (`max_abs_difference`).

    Raises:
        ConfigError: unknown form, a kind of task whose network cannot be exported, a missing package.
        CheckpointError: the arm is not finished, or its weights are damaged.
    """
    if form not in FORMS:
        raise ConfigError(f"--to: unknown form {form!r}{nearest(form, FORMS)}")
    from .graph import trace

    graph = trace(Path(run), arm)
    if form == "onnx":
        from .onnx import export_onnx

        return export_onnx(graph, Path(out))
    from .bundle import export_bundle

    return export_bundle(graph, Path(out))
