"""Bad steps: a loss or gradient that is not finite, or a gradient norm far above what is usual.

`trainer.on_nonfinite` and `trainer.on_spike` say what is done. stop: the run ends, naming samples. skip: the
update, the teachers' and all that the step wrote into buffers are left out; the step counts. rollback: the
newest checkpoint is loaded, and the step is left out when it is met again.

To skip, or to look for spikes, the host must know each step before its update: one synchronisation a step,
which is why neither is the default. Otherwise losses stay on the device until a row is written or a
checkpoint is due, and are looked at before anything is saved. All ranks decide alike, because they exchange
what they have found. RUN/bad holds a record of each bad step (bad_steps.py), which a resumed run leaves
out, too.
"""

from __future__ import annotations

import logging
import statistics
from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...data.errors import MedloomError
from ..config import TrainerConfig
from ..ranks import largest
from .bad_steps import BadSteps, Part, record_of

if TYPE_CHECKING:
    from ..module import PretrainModule

log = logging.getLogger(__name__)

USUAL = 100  # gradient norms of good steps whose median is what is usual
LEAST_USUAL = 20  # before that many, nothing is a spike
ROLLBACKS = 3  # from one checkpoint, after which going back does not help


class BadStep(MedloomError):
    """A bad step that stops the run; the message names step, rank and samples."""


class NonFiniteLoss(BadStep):
    """The loss or the gradient is not a number."""


class GradientSpike(BadStep):
    """The gradient norm is far above its median."""


class Rollback(Exception):
    """Raised on all ranks at once: go on from the newest checkpoint."""


class Guard:
    """Judges the steps of one rank; every rank has one, and all of them decide alike.

    Args:
        config: its policies.
        known: the bad steps of this run so far.
    """

    def __init__(self, config: TrainerConfig, known: BadSteps) -> None:
        self.config = config
        self.known = known
        self.float16 = False  # the loss scaler expects infinite gradients: only the loss is judged
        self.at_once = config.on_nonfinite == "skip" or config.on_spike != "none"
        self.checkpoint = 0  # step of the newest one
        self.left_out = False  # whether this step's update is
        self._norms: deque[float] = deque(maxlen=USUAL)
        self._parts: list[Part] = []  # of this step
        self._pending: list[tuple[int, list[Part], Tensor | None]] = []  # steps that nobody looked at yet
        self._found: tuple[str, str, dict[str, Any]] | None = None  # action, kind, facts of this step
        self._buffers: list[Tensor] = []

    # ---- one step -------------------------------------------------------------------------------------

    def begin(self, module: PretrainModule, step: int) -> None:
        """Before the first micro-batch: hold what the forward pass may change, where it may be taken back."""
        self._parts, self._found, self.left_out = [], None, False
        if self.at_once or step in self.known:
            self._buffers = [buffer.clone() for buffer in module.buffers()]
            module.window.mark()

    def part(self, batch: dict[str, Any], loss: Tensor) -> None:
        """Note a micro-batch."""
        positions = batch.get("host_position", batch["position"])
        self._parts.append(Part(list(batch["key"]), positions, loss.detach()))

    @torch.no_grad()
    def judge(self, module: PretrainModule, step: int, norm: Tensor) -> None:
        """With the complete gradients of a step: drop them where its update is to be left out.

        Args:
            step: optimiser step, the first is 0.
            norm: global gradient norm before clipping, on the device.
        """
        if step in self.known:
            self._leave_out(module)
        elif not self.at_once:
            self._pending.append((step, self._parts, None if self.float16 else norm.detach()))
        else:
            self._found = self._verdict(module, norm)
            if self._found is not None:
                self._leave_out(module)

    def _verdict(self, module: PretrainModule, norm: Tensor) -> tuple[str, str, dict[str, Any]] | None:
        worst = torch.stack([part.loss.float().reshape(()) for part in self._parts]).abs().max()
        values = torch.stack([worst, norm.float()]).nan_to_num(nan=torch.inf, posinf=torch.inf)
        loss, norm_ = largest(values)
        facts: dict[str, Any] = {"norm": norm_}
        if loss == torch.inf or (norm_ == torch.inf and not self.float16):
            return self.config.on_nonfinite, "nonfinite", facts
        if norm_ == torch.inf:
            return None
        usual = statistics.median(self._norms) if len(self._norms) >= LEAST_USUAL else None
        if usual is not None and norm_ > self.config.spike_factor * usual and self.config.on_spike != "none":
            return self.config.on_spike, "spike", facts | {"usual_norm": usual}
        self._norms.append(norm_)
        return None

    def _leave_out(self, module: PretrainModule) -> None:
        self.left_out = True
        module.trainer.optimizers[0].zero_grad(set_to_none=True)
        for buffer, before in zip(module.buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        module.window.drop()
        module.features = module.views = None

    def end(self, module: PretrainModule, step: int) -> None:
        """After the update, or what there was instead of it; every rank calls it.

        Raises:
            BadStep, Rollback: as the policy says.
        """
        self._buffers = []
        if not self.left_out:
            return
        if self._found is None:
            self.known.keep_weights(module.trainer, step)
            return
        action, kind, facts = self._found
        self._act(module, step, self._parts, action, kind, facts)

    # ---- several steps --------------------------------------------------------------------------------

    def look(self, module: PretrainModule) -> None:
        """Judge the steps since the last look (one synchronisation and one exchange); every rank calls it.

        Raises:
            BadStep, Rollback: as the policy says.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        numbers = [[part.loss for part in parts] + ([] if n is None else [n]) for _, parts, n in pending]
        rows = [torch.stack([number.float().reshape(()) for number in row]) for row in numbers]
        finite = torch.stack([row.isfinite().all() for row in rows]).tolist()
        first = next((step for (step, *_), good in zip(pending, finite, strict=True) if not good), None)
        (found,) = largest([-torch.inf if first is None else -float(first)])
        if found == -torch.inf:
            return
        step, parts, norm = next(entry for entry in pending if entry[0] == int(-found))
        facts = {} if norm is None else {"norm": float(norm)}
        self._act(module, step, parts, self.config.on_nonfinite, "nonfinite", facts)

    def _act(self, module: PretrainModule, step: int, parts: list[Part], action: str, kind: str,
             facts: dict[str, Any]) -> None:  # fmt: skip
        """Write the record, then do what the policy says."""
        accumulate = module.config.trainer.accumulate
        record = record_of(step, kind, action, facts, parts, accumulate, checkpoint=self.checkpoint)
        again = self.known.from_checkpoint(self.checkpoint)
        self.known.add(record, write=module.trainer.is_global_zero)
        if action == "stop":
            if self.left_out:
                self.known.keep_weights(module.trainer, step)
            error = NonFiniteLoss if kind == "nonfinite" else GradientSpike
            going_on = f"resume=true trainer.on_{'nonfinite' if kind == 'nonfinite' else 'spike'}=rollback"
            raise error(f"{record.line}; nothing was saved since; {self._mend(record.step)}, or {going_on}")
        if len(self.known) > self.config.most_bad_steps:
            raise BadStep(
                f"{record.line}; that is more than trainer.most_bad_steps={self.config.most_bad_steps}: "
                f"{self._mend(record.step)}"
            )
        if action == "skip":
            log.warning("%s: the update is left out", record.line)
            self.known.keep_weights(module.trainer, step)
            return
        if again >= ROLLBACKS:
            raise BadStep(
                f"{record.line}; the run went back to step {self.checkpoint} {again} times and met another "
                f"bad step each time: its weights are at fault; {self._mend(record.step)}"
            )
        raise Rollback(f"{record.line}: back to the newest checkpoint, step {record.step} will be left out")

    def _mend(self, number: int) -> str:
        return (
            f"see it again with `medloom pretrain --replay {self.known.file(number)}`, then lower "
            "optim.base_lr, set trainer.precision=32-true"
        )

    # ---- checkpoint -----------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to judge alike; equal on all ranks."""
        return {"norms": torch.tensor(list(self._norms), dtype=torch.float64)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._norms = deque(state["norms"].tolist(), maxlen=USUAL)
