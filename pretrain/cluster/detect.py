"""Which ranks there are: plain Python, torchrun and srun, told apart from the environment.

The same command runs everywhere: under torchrun and srun the number of processes is what the launcher
started, and `trainer.devices` only speaks for a plain start. Lightning's own requeue and signal handling
are switched off, because on SIGTERM they lose the work since the last checkpoint (see preempt.py).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from ...data.errors import ConfigError
from ..config import TrainerConfig


@dataclass(frozen=True)
class Launch:
    """How Lightning's Trainer has to be built."""

    launcher: str  # plain | torchrun | srun
    devices: Any  # per node
    num_nodes: int
    plugins: list[Any] = field(default_factory=list)


def detect(config: TrainerConfig, environ: dict[str, str] | None = None) -> Launch:
    """Read the launcher from the environment.

    Raises:
        ConfigError: torchrun with an unequal number of processes a node.
    """
    from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    env = dict(os.environ) if environ is None else environ
    if "TORCHELASTIC_RUN_ID" in env:
        world, local = int(env["WORLD_SIZE"]), int(env["LOCAL_WORLD_SIZE"])
        if world % local:
            raise ConfigError(
                f"torchrun started {world} processes, {local} on this node: start equal numbers a node"
            )
        return Launch("torchrun", local, world // local, [TorchElasticEnvironment()])
    if environ is None and SLURMEnvironment.detect():
        nodes = int(env.get("SLURM_NNODES", "1"))
        tasks = int(env.get("SLURM_NTASKS", "1"))
        if tasks % nodes:
            raise ConfigError(f"srun started {tasks} tasks on {nodes} nodes: use --ntasks-per-node")
        return Launch("srun", tasks // nodes, nodes, [SLURMEnvironment(auto_requeue=False)])
    return Launch("plain", config.devices, config.num_nodes)


def is_main_process() -> bool:
    """True on global rank 0, also before any process group exists."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if os.environ.get(name, "").isdigit() and (name != "SLURM_PROCID" or "SLURM_NTASKS" in os.environ):
            return os.environ[name] == "0" and os.environ.get("NODE_RANK", "0") == "0"
    return True


def precision(wanted: str, accelerator: str) -> str:
    """Lightning's precision: `wanted`, or for auto bf16-mixed on a GPU that has bfloat16, else 32-true."""
    import torch

    if wanted != "auto":
        return wanted
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"
