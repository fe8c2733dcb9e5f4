"""The callback that turns steps into rows: metrics.jsonl, tracker, progress line, probes, panels, alarms.

One row a step at most. A row closes a window of steps (mean loss and gradient norms over steps and ranks),
adds what is true at its step (rate, diagnostics of the last batch's features) and what the clock says
(`CLOCK`). Row steps, and therefore the other numbers, do not depend on where a run was interrupted.
`data_wait` is the share of the time in which training stood still for the next batch: above a tenth, the
loader is the bottleneck. `overhead` is the share that diagnostics, probes and panels took.

RankMe of a batch is bounded by the batch size: compare it within a run.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from . import ranks
from .alarms import CLOCK_RULES, RULES, Alarm, Watch
from .config import PretrainConfig
from .diagnostics import describe
from .mirror import Mirror
from .module import PretrainModule
from .scale.sharding import whole
from .speed import Speed, peak
from .tracking import METRICS, Journal, read_rows

log = logging.getLogger(__name__)

# Keys of a row that the clock decides: no two runs agree on them.
CLOCK = ("time", "samples_per_s", "tokens_per_s", "data_wait", "overhead", "mfu", "gpu_memory_gb", "stall")
_SLOW = {rule.name for rule in CLOCK_RULES}

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
        mirror: Mirror,
        progress: Progress | None = None,
    ) -> None:
        """Open metrics.jsonl (rows beyond step `start` are cut), on the main process only."""
        self.config = config
        self.journal = Journal(folder, keep_until=start) if main else None
        self.mirror = mirror
        self.progress = progress if main else None
        self.probe: Probe | None = None
        self.panels: Panels | None = None
        self.row: dict[str, Any] = {}
        self._bad_steps = 0  # told already
        self._watch = Watch(config.optim.warmup_fraction * config.steps, RULES + CLOCK_RULES)
        self._standing: list[Alarm] = []
        if main:  # alarms look at several rows: a resumed run goes on with those that it wrote
            for row in read_rows(folder / METRICS):
                self._standing = self._watch.see(row)
                self._bad_steps = row.get("bad_steps", self._bad_steps)
        self.speed = Speed()  # what it counts, the profile asks for, too
        self._begin = 0.0
        self._row_step = self._step = -1

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.speed.leave()
        if self.journal is not None:
            self.journal.close()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Measure the device's peak, start the clock; tell the first line of progress."""
        self.speed.peak = peak(pl_module.device, str(trainer.precision))
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._begin = time.monotonic()
        self._row_step = self._step = trainer.global_step
        self._tell(trainer.global_step)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Count the work of the first batch of each shape."""
        self.speed.start(batch["image"].shape, pl_module.encoder)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Leave nothing behind that would count what runs after a failed step."""
        self.speed.leave()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the row of this step when one is due."""
        self.speed.stop(batch["image"].shape)
        step = trainer.global_step
        if step == self._step:  # a micro-batch of an unfinished step
            pl_module.end_of_work()
        else:
            self._step = step
            if self._due(step):
                self._record(trainer, pl_module, step)
            else:
                pl_module.end_of_work()
            self._tell(step)

    def _record(self, trainer: pl.Trainer, module: PretrainModule, step: int) -> None:
        """Everything that is due at `step`; collective: every rank calls it."""
        row, seconds = self._measured(module, step)
        begin = time.perf_counter()  # the device has done its work: from here on it is overhead
        features, views = gathered(module.features), gathered(module.views, axis=1)
        if trainer.is_global_zero and features is not None:
            row |= describe(features, views)
        images: dict[str, Path] = {}
        probed = self.probe is not None and self._at(step, self.config.probe.every_steps or 0)
        shown = self._at(step, self.config.panels.every_steps)
        with whole(module) if probed or shown else nullcontext():  # panels are drawn by rank 0 alone
            if probed and self.probe is not None:
                row |= self.probe(module)
            if shown and self.panels is not None:
                with trainer.precision_plugin.forward_context():  # sharded weights may be gathered in it
                    images = self.panels(module, step)
        if trainer.is_global_zero:
            spent = time.perf_counter() - begin
            row["overhead"] = spent / max(seconds + spent, 1e-9)
            self._alarm(row)
            self._write(row, images)

    def _due(self, step: int) -> bool:
        config = self.config
        every = [config.trainer.log_every, config.probe.every_steps or 0, config.panels.every_steps]
        return step == 1 or any(self._at(step, steps) for steps in every)

    def _at(self, step: int, every: int) -> bool:
        return step == self.config.steps or (every > 0 and step % every == 0)

    def _measured(self, module: PretrainModule, step: int) -> tuple[dict[str, Any], float]:
        """What was measured since the last row, and the seconds of training in it; a collective call."""
        module.guard.look(module)
        means = module.window.close()
        module.end_of_work()  # after the values are on the CPU: now the device has done the work, too
        samples = module.plan.samples(step)
        seconds = max(module.wait_seconds + module.work_seconds, 1e-9)
        done = samples - module.plan.samples(self._row_step)
        row = {
            "step": step, "samples": samples, "time": round(time.monotonic() - self._begin, 3),
            "loss": math.nan, **means,  # no loss where all steps of the window were left out
            "lr": module.rate(step - 1), "samples_per_s": done / seconds,
            "data_wait": module.wait_seconds / seconds, **self.speed.close(seconds, ranks.world()),
        }  # fmt: skip
        if len(module.guard.known):
            row["bad_steps"] = len(module.guard.known)
            if row["bad_steps"] > self._bad_steps:
                self._bad_steps = row["bad_steps"]
                self.mirror.alert("bad step", "a step was left out; the run's folder bad/ says which", step)
        if torch.cuda.is_available() and module.device.type == "cuda":
            row["gpu_memory_gb"] = round(torch.cuda.max_memory_allocated(module.device) / 2**30, 3)
        self._row_step = step
        module.wait_seconds = module.work_seconds = 0.0
        return row, seconds

    def _alarm(self, row: dict[str, Any]) -> None:
        """Put what fires into the row; say each alarm once, as long as it stands."""
        before = {alarm.name for alarm in self._standing}
        self._standing = self._watch.see(row)
        for key, slow in (("alarm", False), ("stall", True)):
            told = [str(alarm) for alarm in self._standing if (alarm.name in _SLOW) == slow]
            if told:
                row[key] = " | ".join(told)
        for alarm in self._standing:
            if alarm.name not in before:
                log.warning("step %d: %s", alarm.step, alarm)
                self.mirror.alert(alarm.name, str(alarm), alarm.step)
        for name in sorted(before - {alarm.name for alarm in self._standing}):
            log.info("step %d: alarm %s is over", row["step"], name)

    def stalled(self, seconds: float) -> None:
        """The loader has given nothing for long; called from the thread that looks at the clock."""
        text = f"no batch for {seconds / 60:.0f} minutes: the loader or its storage stands still"
        log.warning("step %d: %s", max(self._step, 0), text)
        self.mirror.alert("stalled", text, max(self._step, 0))

    def _write(self, row: dict[str, Any], images: dict[str, Path]) -> None:
        self.row = row
        if self.journal is not None:
            self.journal.write(row)
            self.journal.sync()
        self.mirror.log(row, images)

    def _tell(self, step: int) -> None:
        if self.progress is None:
            return
        detail, row = "starting", self.row
        if row:
            parts = [
                f"loss {row['loss']:.4f}", f"rank {row.get('rankme', math.nan):.0f}",
                f"{row['samples_per_s']:.0f} samples/s", f"data wait {100 * row['data_wait']:.0f} %",
                f"MFU {100 * row['mfu']:.0f} %",
                *(f"ALARM {alarm.name}" for alarm in self._standing),
            ]  # fmt: skip
            detail = " · ".join(parts)
        self.progress(step, self.config.steps, f"pretrain {self.config.name} | {detail}")


def gathered(x: torch.Tensor | None, axis: int = 0) -> torch.Tensor | None:
    """Rows along `axis` of all ranks, float32 on the CPU (a collective call); None stays None."""
    if x is None:
        return None
    return ranks.gather(x.detach().float().transpose(0, axis).contiguous()).transpose(0, axis).cpu()
