"""Which ranks there are: plain Python, torchrun and srun, told apart from the environment.

The same command runs everywhere: under torchrun and srun the number of processes is what the launcher
started, and `trainer.devices` only speaks for a plain start. Lightning's own requeue and signal handling
are switched off, because on SIGTERM they lose the work since the last checkpoint (see fault_tolerance).
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

    A shell inside a job of one task (sbatch without srun, salloc) is a plain start.

    Raises:
        ConfigError: an unequal number of processes a node; several tasks, and this process is none of them.
    """
    from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment

    env = dict(os.environ) if environ is None else environ
    if "TORCHELASTIC_RUN_ID" in env:
        world, local = int(env["WORLD_SIZE"]), int(env["LOCAL_WORLD_SIZE"])
        if world % local:
            raise ConfigError(
                f"torchrun started {world} processes, {local} on this node: start equal numbers a node"
            )
        return Launch("torchrun", local, world // local, [TorchElasticEnvironment()])
    # Lightning takes any process of a job for a task of srun, unless it is told where it is.
    here = [LightningEnvironment()] if "SLURM_NTASKS" in env else []
    if "SLURM_NTASKS" in env and env.get("SLURM_JOB_NAME") not in _SHELLS:
        nodes, tasks = int(env.get("SLURM_NNODES", "1")), int(env["SLURM_NTASKS"])
        if "SLURM_STEP_ID" in env:
            spread = env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", ""))
            if tasks % nodes or "," in spread:
                raise ConfigError(f"srun started {tasks} tasks on {nodes} nodes: use --ntasks-per-node")
            return Launch("srun", tasks // nodes, nodes, [_srun()])
        if tasks > 1:
            raise ConfigError(
                f"this job has {tasks} tasks and srun did not start this one: write srun before the command"
            )
    return Launch("plain", config.devices, config.num_nodes, here)


_SHELLS = ("bash", "interactive")  # job names of srun --pty bash and salloc


def _srun() -> Any:
    """Lightning's SLURM environment without its demand for --ntasks-per-node: `detect` has checked that."""
    from pytorch_lightning.plugins.environments import SLURMEnvironment

    class Srun(SLURMEnvironment):
        @staticmethod
        def _validate_srun_variables() -> None:
            return None

    return Srun(auto_requeue=False)


def is_main_process() -> bool:
    """True on global rank 0, also before any process group exists."""
    names = (
        ("RANK", "SLURM_PROCID", "LOCAL_RANK") if "SLURM_STEP_ID" in os.environ else ("RANK", "LOCAL_RANK")
    )
    for name in names:
        if os.environ.get(name, "").isdigit():
            return os.environ[name] == "0" and os.environ.get("NODE_RANK", "0") == "0"
    return True


def precision(wanted: str, accelerator: str) -> str:
    """Lightning's precision: `wanted`, or for auto bf16-mixed on a GPU that has bfloat16, else 32-true."""
    import torch

    if wanted != "auto":
        return wanted
    return "bf16-mixed" if on_gpu(accelerator) and torch.cuda.is_bf16_supported() else "32-true"


def on_gpu(accelerator: str) -> bool:
    """Whether `trainer.accelerator` means a GPU here."""
    import torch

    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def autocast(precision: str, device_type: str) -> Any:
    """The context in which Lightning computes with this precision, for steps outside of a Trainer."""
    import torch

    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    return torch.autocast(device_type, dtype=half, enabled=half is not None, cache_enabled=False)
