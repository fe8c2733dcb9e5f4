"""An arm as `model.onnx`, checked against torch with onnxruntime, and its contract beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...data.atomic import replacing, write_json
from ...data.errors import ConfigError
from .contract import CONTRACT, INPUT, OUTPUT, contract
from .graph import Graph, largest_difference

MODEL = "model.onnx"


def export_onnx(graph: Graph, folder: Path) -> dict[str, Any]:
    """Write model.onnx and preprocessing.json; returns the check that stands in it.

    Raises:
        ConfigError: onnx or onnxruntime is missing, or the file computes something else than torch.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "the ONNX export needs onnx and onnxruntime: pip install 'medloom[export]'"
        ) from error
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / MODEL) as temporary:
        found = torch.onnx.export(
            graph.program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
        )
        assert found is not None
        found.save(temporary)
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()], [one.name for one in session.get_outputs()]

        def infer(x: np.ndarray) -> np.ndarray:
            return np.asarray(session.run(names[1], {names[0][0]: x})[0])

        difference = largest_difference(graph, infer, MODEL)
    said = contract(graph, "torch, with onnxruntime on the CPU", difference)
    said["check"]["opset"] = dict(found.model.opset_imports)
    write_json(folder / CONTRACT, said)
    return said["check"]
