"""A network as a program of torch.export, and as ONNX, checked against torch as it is written.

The batch is free; the sides of the image are those of the example, because every encoder checks its grid in
whole numbers as it is traced.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.atomic import replacing
from ..data.errors import ConfigError, first_line
from ..data.normalise import HU_LEAST_SPAN, HU_LIMITS, IMAGENET_MEAN, IMAGENET_STD, LEAST_STD, RULE

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # largest difference of outputs that counts as the same
Other = Callable[[np.ndarray], Sequence[np.ndarray]]  # float32 [B, C, *spatial] -> the outputs


def exported(module: nn.Module, example: Tensor, name: str) -> Any:
    """The torch.export.ExportedProgram of a module in evaluation mode.

    Args:
        example: [2, C, *spatial].
        name: of the network, for the error.

    Raises:
        ConfigError: torch.export cannot trace it.
    """
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    try:
        with torch.no_grad():
            program = torch.export.export(module, (example,), dynamic_shapes=shapes)
            return program.run_decompositions(_decompositions())
    except Exception as error:  # torch.export raises many kinds
        logger.debug("%s: not exported: %s", name, error)
        raise ConfigError(
            f"{name}: torch.export cannot trace this network ({first_line(error):.120})"
        ) from error


def largest_difference(module: nn.Module, inputs: Sequence[Tensor], other: Other, what: str) -> float:
    """Largest difference of `other` from torch: each input alone, and all as one batch.

    Raises:
        ConfigError: it is more than 1e-4: the export does not compute what was trained.
    """
    worst = 0.0
    for batch in [*inputs, torch.cat(list(inputs))]:
        with torch.no_grad():
            wanted = [tensor.numpy() for tensor in _outputs(module(batch))]
        for found, expected in zip(other(batch.numpy()), wanted, strict=True):
            if found.shape != expected.shape:
                raise ConfigError(
                    f"{what}: gives shape {found.shape}, torch {expected.shape}; please report it"
                )
            # Probabilities absolutely, large numbers relatively.
            scale = max(1.0, float(np.abs(expected).max()))
            worst = max(worst, float(np.abs(found - expected).max()) / scale)
    if not worst <= TOLERANCE:
        raise ConfigError(f"{what}: differs by {worst:.2g} from torch, expected {TOLERANCE} at most")
    return worst


def write_onnx(
    program: Any, path: Path, names: tuple[str, Sequence[str]], check: Callable[[Other], float]
) -> tuple[float, dict[str, int]]:
    """Write a program as ONNX, once onnxruntime computes the same with it; returns (difference, opsets).

    Args:
        names: of the input and of the outputs.
        check: `largest_difference` from what it is given.

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
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        found = torch.onnx.export(
            program, dynamo=True, input_names=[names[0]], output_names=list(names[1]), verbose=False
        )
        assert found is not None
        found.save(temporary)
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])

        def infer(x: np.ndarray) -> list[np.ndarray]:
            return [np.asarray(one) for one in session.run(list(names[1]), {names[0]: x})]

        difference = check(infer)
    return difference, dict(found.model.opset_imports)


def intensity_steps() -> dict[str, Any]:
    """The rule of intensities (data/normalise.py) with its numbers, for whoever serves a network."""
    return {
        "rule": RULE,
        "formula": "(clip(x, low, high) - mean) / std, per channel, statistics of the whole image",
        "kinds": {
            "hu": {"when": f"ct or cbct, values below 0, p99.5 - p0.5 of at least {HU_LEAST_SPAN:g}",
                   "low": HU_LIMITS[0], "high": HU_LIMITS[1], "mean": 0.0, "std": HU_LIMITS[1]},
            "colour": {"when": "picture of 8 bit and 3 channels that differ", "low": 0.0, "high": 255.0,
                       "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)},
            "volume": {"when": "other volumes", "low": "p0.5", "high": "p99.5",
                       "mean": "of the foreground (Otsu)", "std": "of the foreground (Otsu)"},
            "picture": {"when": "other pictures", "low": "p0.5", "high": "p99.5",
                        "mean": "(low + high) / 2", "std": "(high - low) / 4"},
        },
        "least_std": LEAST_STD,  # of high - low
    }  # fmt: skip


def _outputs(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else tuple(found)


def _decompositions() -> dict[Any, Callable[..., Tensor]]:
    """Area interpolation between grids that divide each other is average pooling, which ONNX knows."""
    aten = torch.ops.aten

    def pooled(x: Tensor, size: Sequence[int]) -> Tensor:
        sides = x.shape[-len(size) :]
        if any(side % wanted for side, wanted in zip(sides, size, strict=True)):
            raise ConfigError(f"averages from {tuple(sides)} to {tuple(size)} have no graph: change patch")
        kernel = [side // wanted for side, wanted in zip(sides, size, strict=True)]
        pool = aten.avg_pool3d if len(size) == 3 else aten.avg_pool2d
        return pool(x, kernel, kernel)

    return {
        one.default: pooled
        for one in (
            aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d, aten._adaptive_avg_pool2d,
            aten._adaptive_avg_pool3d,
        )
    }  # fmt: skip
