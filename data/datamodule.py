"""The LightningDataModule of pretraining: the stream, started at the step that the trainer has reached.

Resume is arithmetic: step s reads the positions of `StepPlan.positions(s)`, whatever a loader had read ahead.
The state in the checkpoint is there to refuse another order or other shards, and to go on without a gap or a
repeat when the batch size was changed. The price: Lightning must not wrap the sampler
(`use_distributed_sampler=False`), which is checked.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from .errors import ConfigError
from .loader.loader import Loader, loader
from .stream.config import StreamConfig
from .stream.quarantine import QUARANTINE
from .stream.steps import StepPlan
from .stream.stream import Stream

log = logging.getLogger(__name__)


class PretrainData(pl.LightningDataModule):
    """Loads global batches of `config.batch_size` samples, split over the ranks of the trainer.

    Args:
        config: see `StreamConfig`.
        steps: optimiser steps of the whole run.
        accumulate: micro-batches a step on each rank (the trainer's `accumulate_grad_batches`).
        context: how workers start: "fork", "spawn" or "forkserver"; None: the platform's own.
        folder: run folder, where unreadable samples are kept (`quarantine.py`); None: they are not.

    Raises:
        ConfigError, ShardError: see `Stream`; raised by `setup`.
    """

    def __init__(
        self,
        config: StreamConfig,
        *,
        steps: int,
        accumulate: int = 1,
        context: str | None = None,
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        self.config, self.steps, self.accumulate, self.context = config, steps, accumulate, context
        self.folder = folder
        self.stream: Stream | None = None
        self._loader: Loader | None = None
        self.plan = StepPlan.of(config)

    def setup(self, stage: str | None = None) -> None:
        """Open the shards, once."""
        self._opened()

    def train_dataloader(self) -> Loader:
        """Batches from the trainer's global step to the end of the run, for this rank (`stream.loader`)."""
        trainer = self._trainer()
        connector = getattr(trainer, "_accelerator_connector", None)
        if trainer.world_size > 1 and getattr(connector, "use_distributed_sampler", False):
            raise ConfigError(
                "the stream splits the batches itself: use Trainer(use_distributed_sampler=False)"
            )
        stream = self._opened()
        for line in stream.describe(self.steps):
            log.info("data: %s", line)
        self._loader = loader(
            stream,
            rank=trainer.global_rank,
            world=trainer.world_size,
            start_step=trainer.global_step,
            steps=self.steps,
            accumulate=self.accumulate,
            plan=self.plan,
            context=self.context,
        )
        return self._loader

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """See `Loader.to_device`: to a GPU the copy runs beside the computation."""
        if self._loader is None:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        return self._loader.to_device(batch, device)

    def teardown(self, stage: str) -> None:
        """End the workers."""
        if self._loader is not None:
            self._loader.close()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Log and count the samples that were replaced in this batch; keep its positions on the host, too.

        `host_position` is an array, which is not sent: the draws of the views are made with it.

        Raises:
            ShardError: the failure budget of a source is spent.
        """
        if isinstance(batch, Mapping) and any(batch.get("replaced", ())):
            self._opened().quarantine.collect(batch["replaced"])
        if isinstance(batch, dict):
            batch["host_position"] = np.array(batch["position"])
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The state of the order (see `Stream.state`) and the step; the same on every rank."""
        step = int(self._trainer().global_step)
        return self._opened().state(self.plan.consumed(step)) | {"step": step}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on after the samples of this state, also with another batch size.

        Raises:
            CheckpointError: the state belongs to another order or to other shards.
        """
        consumed = self._opened().resume(state_dict)
        self.plan = self.plan.resumed(int(state_dict["step"]), consumed)

    def _opened(self) -> Stream:
        if self.stream is None:
            file = None if self.folder is None else self.folder / QUARANTINE
            self.stream = Stream(self.config, quarantine=file)
        return self.stream

    def _trainer(self) -> pl.Trainer:
        if self.trainer is None:
            raise RuntimeError("PretrainData needs a trainer: pass it to Trainer.fit(datamodule=...)")
        return self.trainer
