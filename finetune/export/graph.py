"""A trained arm as one graph: normalised image in, what is scored out (probabilities, grades, a number).

The choice: torch.export once, and ONNX and the MONAI bundle from the same program, so that both compute the
same. The batch is free; the sides of the image are free where the architecture allows it (a convolutional
encoder), else they are the plan's patch. A program that claims free sides is tried on other sides before it
is believed. What lies before and after the network (reading, intensities, windows, resampling) is in
contract.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...data.errors import CollectionError, ConfigError
from ..evaluation import open_run
from ..run import load_arm
from ..tasks import Task

logger = logging.getLogger(__name__)

_CHECKED = 4  # inputs on which an exported network is compared
_TOLERANCE = 1e-4  # largest difference of outputs that counts as the same


class Scored(nn.Module):
    """A network with the task's reading of what it puts out; float32 in and out."""

    def __init__(self, network: nn.Module, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.read = read

    def forward(self, image: Tensor) -> Tensor:
        """[B, C, *spatial] -> [B, K, *spatial] or [B, K]."""
        return self.read(self.network(image).float()).float()


@dataclass(slots=True)
class Graph:
    """What is exported."""

    task: Task
    arm: str
    module: Scored
    program: Any  # torch.export.ExportedProgram
    free_sides: bool
    dense: bool  # whether it puts out a map on the image's grid
    inputs: list[Tensor]  # [1, C, *patch], normalised
    real: bool  # whether they are images of the task; else noise


def trace(run: Path, arm: str) -> Graph:
    """Export an arm of a run.

    Raises:
        ConfigError: not a run, or a network that has no graph (detection, retrieval).
        CheckpointError: the arm is not finished, or its weights are damaged.
    """
    from ..prediction.predict import task_of

    task = task_of(run)
    network, _ = load_arm(task, run / arm)
    module = Scored(network, task.reader(network)).eval()
    inputs, real = _inputs(run, task)
    program, free = _program(module, task.plan.patch, torch.cat([inputs[0]] * 2), task.record.name)
    with torch.no_grad():
        dense = module(inputs[0]).ndim == inputs[0].ndim
    return Graph(task, arm, module, program, free, dense, inputs, real)


def largest_difference(graph: Graph, other: Callable[[np.ndarray], np.ndarray], what: str) -> float:
    """Largest difference of `other` (on float32 [B, C, *patch]) from torch, alone and as one batch.

    Raises:
        ConfigError: it is more than 1e-4: the export does not compute what was trained.
    """
    batches = [*graph.inputs, torch.cat(graph.inputs)]
    if graph.free_sides:
        batches.append(_wider(graph.inputs[0]))
    worst = 0.0
    for batch in batches:
        with torch.no_grad():
            expected = graph.module(batch).numpy()
        found = other(batch.numpy())
        if found.shape != expected.shape:
            raise ConfigError(f"{what}: gives shape {found.shape}, torch {expected.shape}; please report it")
        scale = max(1.0, float(np.abs(expected).max()))  # probabilities absolutely, large numbers relatively
        worst = max(worst, float(np.abs(found - expected).max()) / scale)
    if not worst <= _TOLERANCE:
        raise ConfigError(f"{what}: differs by {worst:.2g} from torch, expected {_TOLERANCE} at most")
    return worst


def _program(module: nn.Module, patch: Sequence[int], example: Tensor, name: str) -> tuple[Any, bool]:
    """(exported program, whether the sides are free)."""
    dim = torch.export.Dim
    batch = {0: dim.DYNAMIC}
    sides = dict.fromkeys(range(2, example.ndim), dim.AUTO)
    failure = ""
    for shapes in ({**batch, **sides}, batch):
        try:
            with torch.no_grad():
                program = torch.export.export(module, (example,), dynamic_shapes=(shapes,))
                program = program.run_decompositions(_decompositions())
                free = _symbolic(program, example.ndim)
                if free:
                    wide = _wider(example)
                    found, expected = program.module()(wide), module(wide)
                    free = bool(torch.allclose(found, expected, atol=_TOLERANCE))
        except Exception as error:  # torch.export raises many kinds
            logger.debug("%s: not exported with %s: %s", name, shapes, error)
            failure = str(error).splitlines()[0]
            continue
        if free or shapes is batch:
            return program, free
        # Sides that were found to be fixed, or are not to be trusted: state them.
    raise ConfigError(f"task {name}: torch.export cannot trace this network ({failure:.120})")


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


def _symbolic(program: Any, ndim: int) -> bool:
    """Whether every side of the image is a symbol of the program."""
    (user,) = program.graph_signature.user_inputs
    node = next(node for node in program.graph.nodes if node.name == user)
    return all(not isinstance(side, int) for side in node.meta["val"].shape[2:ndim])


def _wider(example: Tensor) -> Tensor:
    """The example beside its mirror image: twice as wide along the last axis."""
    return torch.cat([example, example.flip(-1)], dim=-1)


def _inputs(run: Path, task: Task) -> tuple[list[Tensor], bool]:
    """Training examples of the task [1, C, *patch]; noise where its data is not at hand."""
    try:
        opened = open_run(run, None)
    except (CollectionError, ConfigError) as error:
        logger.warning("the task's data is not at hand, noise is compared instead: %s", error)
        shape = (1, task.plan.channels, *task.plan.patch)
        return [
            torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(_CHECKED)
        ], False
    images = [opened.example(position)["image"][None] for position in range(_CHECKED)]
    opened.data.shards.close()
    return images, True
