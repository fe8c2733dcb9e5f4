"""Cells on a Ray cluster: the same cells, given out one by one; every node sees the folder under one path.

A node or a process that dies costs the cell one of three attempts, since a cell goes on from its checkpoint.
Ray is the optional extra `ray`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ...data.ingest.ray_pool import RayPool
from .cell import Outcome, run_cell, state, write_failure
from .config import BenchmarkConfig
from .grid import Cell
from .pool import Tell

logger = logging.getLogger(__name__)
_ATTEMPTS = 3


def run_on_ray(
    config: BenchmarkConfig,
    cells: Sequence[Cell],
    address: str,
    *,
    jobs: int = 1,
    tell: Tell | None = None,
) -> dict[str, Outcome]:
    """As `pool.run_cells`, on the cluster at `address`, or on `local`, one of this machine with `jobs` CPUs.

    Raises:
        ConfigError: Ray is not installed.
        ShardError: no cluster answers, or a node does not share the folder.
    """
    outcomes: dict[str, Outcome] = {}
    with RayPool(address, config.folder, workers=jobs) as pool:
        ray = pool.ray
        gpus = 1 if config.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1 else 0
        task = ray.remote(_one).options(num_cpus=1, num_gpus=gpus, max_retries=_ATTEMPTS - 1)
        under_way: dict[Any, Cell] = {task.remote(config, cell): cell for cell in cells}
        try:
            while under_way:
                ready, _ = ray.wait(list(under_way), timeout=0.5)
                for reference in ready:
                    cell = under_way.pop(reference)
                    outcomes[cell.name] = _answer(ray, reference, cell, config)
                if tell:
                    tell(len(outcomes), len(cells), f"cells | {len(under_way)} to go")
        finally:
            for reference in under_way:
                ray.cancel(reference, force=True)
    return outcomes


def _answer(ray: Any, reference: Any, cell: Cell, config: BenchmarkConfig) -> Outcome:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        folder = cell.folder(config.folder)
        if state(folder) == "open":
            folder.mkdir(parents=True, exist_ok=True)
            reason = f"its Ray worker was lost {_ATTEMPTS} times ({type(error).__name__})"
            write_failure(folder, cell, reason)
        return "failed"


def _one(config: BenchmarkConfig, cell: Cell) -> Outcome:
    import torch

    torch.set_num_threads(1)
    return run_cell(config, cell)
