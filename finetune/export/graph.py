"""A trained arm as one graph: normalised image in, what is scored out (probabilities, grades, a number).

The choice: torch.export once, and ONNX and the MONAI bundle from the same program, so that both compute the
same (pretrain/graph.py). What lies before and after the network (reading, intensities, windows, resampling)
is in contract.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...data.errors import CollectionError, ConfigError
from ...pretrain.graph import exported, largest_difference
from ..evaluation import open_run
from ..run import load_arm
from ..tasks import Task

logger = logging.getLogger(__name__)

_CHECKED = 4  # inputs on which an exported network is compared


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
    program = exported(module, torch.cat([inputs[0]] * 2), f"task {task.record.name}")
    with torch.no_grad():
        dense = module(inputs[0]).ndim == inputs[0].ndim
    return Graph(task, arm, module, program, dense, inputs, real)


def compared(graph: Graph, other: Callable[[np.ndarray], np.ndarray], what: str) -> float:
    """`largest_difference` of `other` (on float32 [B, C, *patch]) from torch."""
    return largest_difference(graph.module, graph.inputs, lambda x: [other(x)], what)


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
