"""An arm as `model.onnx`, checked against torch with onnxruntime, and its contract beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...data.atomic import write_json
from ...pretrain.graph import write_onnx
from .contract import CONTRACT, INPUT, OUTPUT, contract
from .graph import Graph, compared

MODEL = "model.onnx"


def export_onnx(graph: Graph, folder: Path) -> dict[str, Any]:
    """Write model.onnx and preprocessing.json; returns the check that stands in it.

    Raises:
        ConfigError: onnx or onnxruntime is missing, or the file computes something else than torch.
    """
    difference, opset = write_onnx(
        graph.program, folder / MODEL, (INPUT, [OUTPUT]),
        lambda other: compared(graph, lambda x: other(x)[0], MODEL),
    )  # fmt: skip
    said = contract(graph, "torch, with onnxruntime on the CPU", difference)
    said["check"]["opset"] = opset
    write_json(folder / CONTRACT, said)
    return said["check"]
