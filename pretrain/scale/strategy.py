"""How the ranks share the work, for Lightning: DDP (whole weights on each) or FSDP2 (weights split).

`auto` is DDP where there are several ranks: it is faster as long as weights, gradients, optimiser and teacher
fit a device together (16 to 20 bytes a parameter). Neither changes what is computed: order, views, schedules
and losses are those of one process with the same global batch, and a run may change its strategy and its
number of ranks whenever it is resumed.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ...data.errors import ConfigError, nearest
from ..cluster.detect import Launch
from ..config import TrainerConfig
from . import sharding, split

PARTS = "parts"  # key of a checkpoint that lies in a folder: which
STRATEGIES = ("auto", "ddp", "fsdp2")


def ranks_of(launch: Launch, accelerator: str) -> int:
    """Processes that Lightning will run, before there is a Trainer."""
    devices = launch.devices
    if isinstance(devices, list | tuple):
        local = len(devices)
    elif isinstance(devices, int | str) and str(devices).isdigit():
        local = int(devices)
    else:  # auto, or -1: all GPUs, else one process
        import torch

        local = torch.cuda.device_count() if accelerator in ("auto", "gpu", "cuda") else 1
    return max(1, local) * launch.num_nodes


def build_strategy(config: TrainerConfig, launch: Launch, precision: str) -> Any:
    """What goes into `Trainer(strategy=...)`.

    Args:
        precision: resolved, e.g. "bf16-mixed".

    Raises:
        ConfigError: an unknown strategy; a shard size that does not divide the ranks; float16 with fsdp2.
    """
    ranks = ranks_of(launch, config.accelerator)
    if config.strategy not in STRATEGIES:
        raise ConfigError(
            f"trainer.strategy is {config.strategy!r}{nearest(config.strategy, set(STRATEGIES))}"
        )
    if config.shard_size is not None and (config.strategy != "fsdp2" or ranks % config.shard_size):
        raise ConfigError(
            f"trainer.shard_size {config.shard_size} with {ranks} ranks and trainer.strategy="
            f"{config.strategy}: it belongs to fsdp2 and divides the ranks (8: split inside a node)"
        )
    if config.strategy == "fsdp2":
        if precision.startswith("16"):
            raise ConfigError(
                f"trainer.precision={precision} with trainer.strategy=fsdp2: a loss scaler does not know "
                "sharded gradients; use bf16-mixed or 32-true"
            )
        return FSDP2(config.shard_size)
    if ranks == 1:
        return "auto"
    # Buffers are equal on all ranks by themselves: batch norms count all rows, centres are all-reduced.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    settings: dict[str, Any] = {"gradient_as_bucket_view": True, buffers: False}
    return DDPStrategy(**settings)


class FSDP2(ModelParallelStrategy):
    """Lightning's strategy with a mesh of ours and checkpoints of whole tensors, as DDP writes them.

    Args:
        shard_size: ranks that share one copy of the weights; None: all of them.
    """

    def __init__(self, shard_size: int | None = None) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)
        self.shard_size = shard_size
        self.whole = True  # whether a checkpoint is put together; split.py wants the parts

    def setup_environment(self) -> None:
        """Start the process group and lay out the ranks."""
        ranks = self.num_nodes * self.num_processes
        self._data_parallel_size = ranks
        super().setup_environment()
        kind, size = self.root_device.type, self.shard_size or ranks
        if size == ranks:
            mesh = init_device_mesh(kind, (ranks,), mesh_dim_names=("shard",))
        else:
            mesh = init_device_mesh(kind, (ranks // size, size), mesh_dim_names=("copy", "shard"))
        self._device_mesh = mesh
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = mesh

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole weights, on rank 0 (a collective call)."""
        assert self.model is not None
        return self._put_together(self.model.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Whole moments, on rank 0 (a collective call)."""
        return self._put_together(optimizer.state_dict())

    def _put_together(self, state: dict[str, Any]) -> dict[str, Any]:
        return sharding.full_state(state, keep=self.is_global_zero) if self.whole else state

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the file on every rank, without moving what is not needed into memory."""
        import torch

        path = Path(checkpoint_path)
        file = path / split.REST if path.is_dir() else path
        state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        return {**state, PARTS: path} if path.is_dir() else state

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Each rank takes its part."""
        assert self.model is not None
        if PARTS in checkpoint:
            split.read_weights(self.model, checkpoint[PARTS])
        else:
            sharding.load_weights(self.model, checkpoint["state_dict"], strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Each rank takes its part."""
        for optimiser, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            if PARTS in checkpoint:
                split.read_optimiser(optimiser, state, checkpoint[PARTS])
            else:
                sharding.load_optimiser(optimiser, state)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Weights are split before `setup`: they are restored when plain ones are, before `on_fit_start`."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning asks for the optimiser's state as well."""
        return True
