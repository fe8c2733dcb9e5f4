"""The one LightningModule: any encoder and objective, one optimiser, schedules as functions of the step.

Nothing here depends on a global random state or on Lightning's loop state. The random state of torch (drop
path) is set anew for each step from (seed, step, rank), the learning rate is computed from the step, and a
checkpoint keeps the step alone: Lightning's own counters of batches in an epoch would end a resumed run
early, because the loader of a resumed run holds the remaining steps only.

Losses are kept on the device until a row is written or a checkpoint is due, so that no step waits for the
GPU; a loss that is not finite is therefore found up to `log_every` steps later, before anything is saved,
with its own step and sample keys (fault_tolerance, which also says what else a run can do about it).
"""

from __future__ import annotations

import logging
import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ..data.draws import stream_key
from ..data.stream.steps import StepPlan
from . import ranks
from .config import PretrainConfig
from .encoders import Encoder
from .fault_tolerance.guard import Guard
from .gradients import GradientNorms
from .norms import count_all_ranks
from .objectives import Batch, Objective
from .optim import optimiser, param_groups, scaled_lr
from .scale.sharding import shard
from .schedules import cosine, rate
from .views import limits, to_float

log = logging.getLogger(__name__)


class Window:
    """Scalars of the steps since the last row. They travel in the checkpoint: a resumed row is the same."""

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = {}
        self._marks: dict[str, int] = {}

    def add(self, terms: dict[str, Tensor]) -> None:
        """Append one value of each term (scalars, any device, no synchronisation)."""
        for name, value in terms.items():
            self.values.setdefault(name, []).append(value.detach().float().reshape(()))

    def mark(self) -> None:
        """Remember what is there now, see `drop`."""
        self._marks = {name: len(values) for name, values in self.values.items()}

    def drop(self) -> None:
        """Forget what was added since `mark`."""
        cut = {name: values[: self._marks.get(name, 0)] for name, values in self.values.items()}
        self.values = {name: values for name, values in cut.items() if values}

    def stacked(self) -> dict[str, Tensor]:
        """name -> float32 [steps] on the CPU, averaged over the ranks (a collective call)."""
        return {name: (ranks.total(torch.stack(v)) / ranks.world()).cpu() for name, v in self.values.items()}

    def close(self) -> dict[str, float]:
        """Mean of each term over steps and ranks; the window is empty afterwards (a collective call)."""
        means = {name: float(values.double().mean()) for name, values in self.stacked().items()}
        self.values.clear()
        return means

    def restore(self, stacked: dict[str, Tensor], device: torch.device) -> None:
        """Continue a window that `stacked` described."""
        self.values = {name: list(values.to(device).unbind()) for name, values in stacked.items()}


class PretrainModule(pl.LightningModule):
    """Encoder + objective under Lightning. One optimiser, automatic optimisation."""

    def __init__(self, config: PretrainConfig, encoder: Encoder, objective: Objective, guard: Guard) -> None:
        super().__init__()
        self.config = config
        self.guard = guard
        self.encoder = encoder
        self.objective = objective
        count_all_ranks(self)
        self.peak_rate, arithmetic = scaled_lr(
            config.optim.base_lr, config.data.step_samples, config.optim.scaling
        )
        log.info(arithmetic)
        self.plan = StepPlan.of(config.data)
        self.window = Window()
        self.gradients = GradientNorms(encoder, objective)
        self.features: Tensor | None = None  # [B, E] of the last micro-batch on this rank
        self.views: Tensor | None = None  # [V, B, E] of true views of the same images, where there are
        self.start_step = 0
        self.wait_seconds = self.work_seconds = 0.0  # since the last row; see Recorder
        self.idle_since: float | None = None  # the end of the last batch, by time.perf_counter

    def configure_model(self) -> None:
        """Split the weights over the ranks where the strategy does; Lightning calls it once, on all ranks."""
        if self.device_mesh is None:
            return
        trainer = self.config.trainer
        shard(self, self.device_mesh, method="training_step", precision=str(self.trainer.precision),
              compiled=trainer.compile)  # fmt: skip
        self.gradients = GradientNorms(self.encoder, self.objective)  # parameters are others now

    # ---- one step -------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Set the learning rate and torch's random state for this step; note how long the data took."""
        now = time.perf_counter()
        if self.idle_since is not None:
            self.wait_seconds += now - self.idle_since
        self._work_since = now
        step = self.trainer.global_step
        micro = batch_idx % self.config.trainer.accumulate
        seed_micro_batch(self.config.seed, step, self.global_rank, micro)
        if micro == 0:
            self.guard.begin(self, step)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.rate(step) * group.get("lr_scale", 1.0)
            if group["name"].endswith("decay"):
                group["weight_decay"] = self.weight_decay(step)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Loss of one micro-batch of this rank."""
        output = self.objective.step(self.prepared(batch, self.trainer.global_step), self.encoder)
        self.window.add({"loss": output.loss, **output.terms})
        self.features, self.views = output.features, output.views
        self.guard.part(batch, output.loss)
        return output.loss

    def prepared(self, batch: dict[str, Any], step: int) -> Batch:
        """The loader's batch on this device as what objectives take at this step: float, normalised."""
        image, at = to_float(batch, self.encoder.in_channels), batch.get("host_position")
        mask = batch.get("mask")
        return Batch(image=image, position=batch["position"], seed=self.config.data.seed,
                     modality=batch.get("modality"), spacing=batch.get("spacing"),
                     limits=limits(batch, self.encoder.in_channels),
                     host_position=None if at is None else torch.from_numpy(at),
                     step=step, steps=self.config.steps,
                     label=batch.get("label"), mask=None if mask is None else mask.long())  # fmt: skip

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], batch_idx: int) -> None:
        """Start the clock of the data wait; runs after all callbacks, whose time is nobody's wait."""
        self.idle_since = time.perf_counter()

    def end_of_work(self) -> None:
        """Stop the clock of the step; the first callback at the end of a batch calls it."""
        self.work_seconds += time.perf_counter() - self._work_since
        self._work_since = time.perf_counter()

    # ---- optimiser ------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimiser over encoder and objective; the rate is set in `on_train_batch_start`."""
        optim = self.config.optim
        groups = param_groups(
            self.encoder,
            self.objective.named_parameters(),
            weight_decay=optim.weight_decay,
            layer_decay=optim.layer_decay,
            stem_scale=optim.stem_scale,
        )
        return optimiser(
            optim.name,
            groups,
            lr=self.peak_rate,
            betas=optim.betas,
            momentum=optim.momentum,
            # A fused update undoes the loss scale of float16 itself: what is clipped and judged before it
            # would still be scaled.
            fused=False if self.config.trainer.precision.startswith("16") else optim.fused,
        )

    def rate(self, step: int) -> float:
        """Learning rate of optimiser step `step` (0 is the first): linear warm-up, then the schedule."""
        optim, steps = self.config.optim, self.config.steps
        return rate(optim.schedule, step, steps=steps, warmup=round(optim.warmup_fraction * steps),
                    peak=self.peak_rate, floor=optim.min_lr)  # fmt: skip

    def weight_decay(self, step: int) -> float:
        """Weight decay of optimiser step `step`."""
        optim = self.config.optim
        end = optim.weight_decay if optim.weight_decay_end is None else optim.weight_decay_end
        return cosine(step, self.config.steps, optim.weight_decay, end)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """Update the weights, then what follows them; a bad step may do neither (see `Guard`)."""
        step = self.trainer.global_step  # Lightning counts this step only after the call
        optimizer.step(closure=optimizer_closure)
        if not self.guard.left_out:
            self.objective.after_update(step, self.config.steps, self.encoder)
        self.guard.end(self, step)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: Any = None,
        gradient_clip_algorithm: Any = None,
    ) -> None:
        """Clip the global norm and keep it for the row (also where nothing is clipped)."""
        clip = self.config.optim.clip
        self.objective.before_update(self.trainer.global_step, self.config.steps, self.encoder)
        norm, parts = self.gradients.clip(clip)
        self.window.add({"grad_norm": norm, **parts})
        self.guard.judge(self, self.trainer.global_step, norm)

    # ---- checkpoint -----------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the step and the open window; drop Lightning's loop counters (see the module docstring)."""
        checkpoint.pop("loops", None)
        step = self.trainer.global_step
        checkpoint["medloom"] = {
            "step": step, "samples": self.plan.samples(step), "window": self.window.stacked(),
            "encoder": dict(self.config.encoder), "released": self.released_prefix(),
            "guard": self.guard.state(),
        }  # fmt: skip

    def released_prefix(self) -> str:
        """Where the tensors of the released encoder lie in the checkpoint: "encoder.", or a teacher's."""
        released = self.objective.released(self.encoder)
        return next(f"{name}." for name, module in self.named_modules() if module is released)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the step and the window from a checkpoint."""
        self.start_step = int(checkpoint["medloom"]["step"])
        self.window.restore(checkpoint["medloom"]["window"], torch.device("cpu"))
        if "guard" in checkpoint["medloom"]:
            self.guard.restore(checkpoint["medloom"]["guard"])

    def on_fit_start(self) -> None:
        """Tell Lightning at which step the run starts, before it asks for the loader; share the bad steps."""
        self.guard.checkpoint = self.start_step
        self.guard.float16 = str(self.trainer.precision).startswith("16")
        self.guard.known.share(self.trainer.strategy)
        progress = self.trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress
        progress.optimizer.step.total.completed = self.start_step
        self.window.restore({k: torch.stack(v) for k, v in self.window.values.items()}, self.device)
        loop: Any = self.trainer.fit_loop.epoch_loop
        if hasattr(loop, "_broadcast_sigterm_tensor"):
            # Lightning asks all ranks for a SIGTERM in every step and waits for the answer; Checkpointing
            # does that, seldom.
            loop._broadcast_sigterm_tensor = lambda: None


def seed_micro_batch(seed: int, step: int, rank: int, micro: int) -> None:
    """Set torch's random state for a micro-batch of optimiser step `step` (0 is the first)."""
    torch.manual_seed(stream_key(seed, f"torch:{step}:{rank}:{micro}") >> 1)
