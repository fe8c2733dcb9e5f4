"""The callback that turns steps into rows: metrics.jsonl, W&B, the progress line, probes, panels, alarms.

One row a step at most. A row closes a window of steps (mean loss and gradient norm over steps and ranks),
adds what is true at its step (rate, diagnostics of the last batch's features) and what the clock says. Row
steps, and therefore the numbers, do not depend on where a run was interrupted. `data_wait` is the share of
the time in which training stood still for the next batch: above a tenth, the loader is the bottleneck.

RankMe of a batch is bounded by the batch size: compare it within a run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ..data.config import to_dict
from .config import PretrainConfig
from .diagnostics import alarm, feature_std, rankme
from .module import PretrainModule
from .tracking import Journal, Tracker

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
Probe = Callable[[PretrainModule], dict[str, float]]
Panels = Callable[[PretrainModule, int], dict[str, Path]]


class Recorder(pl.Callback):
    """Rows, on rank 0; the other ranks take part in the means. A context manager around `fit`."""

    def __init__(
        self,
        config: PretrainConfig,
        folder: Path,
        *,
        main: bool,
        start: int,
        progress: Progress | None = None,
    ) -> None:
        """Open metrics.jsonl (rows beyond step `start` are cut) and W&B, on the main process only."""
        self.config = config
        self.journal = Journal(folder, keep_until=start) if main else None
        self.tracker = (
            Tracker(folder, config.tracking, name=config.name, values=to_dict(config)) if main else None
        )
        self.progress = progress if main else None
        self.probe: Probe | None = None
        self.panels: Panels | None = None
        self.row: dict[str, Any] = {}
        self.finished = False  # set by the run when the last step is done
        self._alarms: set[str] = set()
        self._begin = 0.0
        self._row_step = self._step = -1

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.tracker is not None:
            self.tracker.finish({"finished": self.finished, **self.row}, failed=kind is not None)
        if self.journal is not None:
            self.journal.close()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the clock; tell the first line of progress."""
        self._begin = time.monotonic()
        self._row_step = self._step = trainer.global_step
        self._tell(trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the row of this step when one is due."""
        step = trainer.global_step
        if step == self._step:  # a micro-batch of an unfinished step
            pl_module.end_of_work()
            return
        self._step = step
        if self._due(step):
            row = self._row(trainer, pl_module, step)
            images: dict[str, Path] = {}
            if trainer.is_global_zero:
                if self.probe is not None and self._at(step, self.config.probe.every_steps):
                    row.update(self.probe(pl_module))
                if self.panels is not None and self._at(step, self.config.panels.every_steps):
                    images = self.panels(pl_module, step)
                self._write(row, images)
        else:
            pl_module.end_of_work()
        self._tell(step)

    def _due(self, step: int) -> bool:
        every = [self.config.trainer.log_every, self.config.probe.every_steps, self.config.panels.every_steps]
        return step == 1 or any(self._at(step, steps) for steps in every)

    def _at(self, step: int, every: int) -> bool:
        return step == self.config.steps or (every > 0 and step % every == 0)

    def _row(self, trainer: pl.Trainer, module: PretrainModule, step: int) -> dict[str, Any]:
        """The row of `step`; collective: every rank calls it."""
        module.check_finite()
        means = module.window.close()
        features = gathered(module.features)
        module.end_of_work()  # after the values are on the CPU: now the device has done the work, too
        samples = module.plan.samples(step)
        seconds = module.wait_seconds + module.work_seconds
        done = samples - module.plan.samples(self._row_step)
        row = {
            "step": step, "samples": samples, "time": round(time.monotonic() - self._begin, 3), **means,
            "lr": module.rate(step - 1), "feature_std": feature_std(features), "rankme": rankme(features),
            "samples_per_s": done / max(seconds, 1e-9), "data_wait": module.wait_seconds / max(seconds, 1e-9),
        }  # fmt: skip
        if torch.cuda.is_available() and module.device.type == "cuda":
            row["gpu_memory_gb"] = round(torch.cuda.max_memory_allocated(module.device) / 2**30, 3)
        self._row_step = step
        module.wait_seconds = module.work_seconds = 0.0
        if step > self.config.optim.warmup_fraction * self.config.steps:
            self._alarm(row, alarm(features), trainer.is_global_zero)
        return row

    def _alarm(self, row: dict[str, Any], fired: str | None, speak: bool) -> None:
        if fired is None:
            return
        row["alarm"] = fired
        rule = fired.split()[0]
        if speak and rule not in self._alarms:
            self._alarms.add(rule)
            log.warning("step %d: %s", row["step"], fired)

    def _write(self, row: dict[str, Any], images: dict[str, Path]) -> None:
        self.row = row
        if self.journal is not None:
            self.journal.write(row)
            self.journal.sync()
        if self.tracker is not None:
            self.tracker.log(row, images)

    def _tell(self, step: int) -> None:
        if self.progress is None:
            return
        detail = "starting"
        if self.row:
            detail = (
                f"loss {self.row['loss']:.4f} · {self.row['samples_per_s']:.0f} samples/s · "
                f"data wait {100 * self.row['data_wait']:.0f} %"
            )
        self.progress(step, self.config.steps, f"pretrain {self.config.name} | {detail}")


def gathered(features: torch.Tensor | None) -> torch.Tensor:
    """Features [B, E] of all ranks, float32 on the CPU (a collective call)."""
    import torch.distributed as dist

    if features is None:
        return torch.zeros(0, 1)
    features = features.float().contiguous()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, features)
        features = torch.cat(parts)
    return features.cpu()
