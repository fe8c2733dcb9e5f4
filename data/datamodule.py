"""The LightningDataModule of pretraining: the stream, started at the step that the trainer has reached.

Resume is arithmetic: step s reads the positions from s x batch_size on, whatever a loader had read ahead. The
state in the checkpoint is there to refuse another order or other shards, and to go on without a gap or a
repeat when the batch size was changed. The price: Lightning must not wrap the sampler
(`use_distributed_sampler=False`), which is checked.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from .errors import ConfigError
from .loader import Loader, loader
from .stream import Stream
from .stream_config import StreamConfig

log = logging.getLogger(__name__)


class PretrainData(pl.LightningDataModule):
    """Loads global batches of `config.batch_size` samples, split over the ranks of the trainer.

    Args:
        config: see `StreamConfig`.
        steps: optimiser steps of the whole run.
        accumulate: micro-batches a step on each rank (the trainer's `accumulate_grad_batches`).
        context: how workers start: "fork", "spawn" or "forkserver"; None: the platform's own.

    Raises:
        ConfigError, ShardError: see `Stream`; raised by `setup`.
    """

    def __init__(
        self, config: StreamConfig, *, steps: int, accumulate: int = 1, context: str | None = None
    ) -> None:
        super().__init__()
        self.config, self.steps, self.accumulate, self.context = config, steps, accumulate, context
        self.stream: Stream | None = None
        self._base_step = self._base_position = 0  # where the present batch size began to count

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
        for line in stream.order.describe(self.position(self.steps)):
            log.info("data: %s", line)
        return loader(
            stream,
            rank=trainer.global_rank,
            world=trainer.world_size,
            start_step=trainer.global_step,
            steps=self.steps,
            accumulate=self.accumulate,
            offset=self.position(0),
            context=self.context,
        )

    def position(self, step: int) -> int:
        """First position of optimiser step `step`: the samples trained on before it (over all ranks)."""
        return self._base_position + (step - self._base_step) * self.config.batch_size

    def state_dict(self) -> dict[str, Any]:
        """The state of the order (see `Order.state`) and the step; the same on every rank."""
        stream, step = self._opened(), int(self._trainer().global_step)
        state = stream.order.state(self.position(step), manifest=stream.shards.manifest.hash)
        return state | {"step": step}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on after the samples of this state, also with another batch size.

        Raises:
            CheckpointError: the state belongs to another order or to other shards.
        """
        stream = self._opened()
        self._base_position = stream.order.resume(state_dict, manifest=stream.shards.manifest.hash)
        self._base_step = int(state_dict["step"])

    def _opened(self) -> Stream:
        if self.stream is None:
            self.stream = Stream(self.config)
        return self.stream

    def _trainer(self) -> pl.Trainer:
        if self.trainer is None:
            raise RuntimeError("PretrainData needs a trainer: pass it to Trainer.fit(datamodule=...)")
        return self.trainer
