"""Training by gradient, the engine of every protocol that has steps.

The loop is plain torch: one device, AdamW, the phases of the protocol (phases.py), gradient clipping, an
average of the weights where it is asked for, bf16 on CUDA alone. The validation split chooses the weights
that are kept; test is never looked at here. The state goes to `last.ckpt` at every validation and every few
minutes, and a restart continues the same numbers, because examples and augmentation are functions of the
position. The price of a validation is a pass over the validation cases; five of them are a few per cent of
a run.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import time
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...data.atomic import replacing, write_text
from ...data.errors import MedloomError
from ...pretrain.encoders.base import Encoder
from ...pretrain.optim import decays, param_groups
from ..config import FinetuneConfig
from .average import Average
from .base import Outcome, Session, better
from .phases import Phases, head_alone

logger = logging.getLogger(__name__)

CHECKPOINT = "last.ckpt"
METRICS = "metrics.jsonl"
_LOG_EVERY = 10  # steps
_HEAD_LR = {"segmentation": 5e-3}
_OTHER_HEAD_LR = 1e-3


def optimise(
    network: nn.Module,
    session: Session,
    *,
    pretrained: bool,
    phases: Phases,
    added: Collection[nn.Parameter] = (),
) -> Outcome:
    """Train `network` by gradient and load the weights that were best on validation.

    Args:
        pretrained: choose the rate and layer-wise decay for a pretrained encoder.
        phases: the schedule; `head_alone` leaves the encoder frozen.
        added: parameters in the encoder that are new and learn at the head's rate, beside `Encoder.added`.

    Raises:
        MedloomError: the loss is not finite.
    """
    task, config, device = session.task, session.task.config, session.device
    network.to(device).train()
    if phases is head_alone:
        network.get_submodule("encoder").requires_grad_(False)
    optimiser = torch.optim.AdamW(
        groups(network, config, pretrained=pretrained, added=added),
        betas=(config.optim.betas[0], config.optim.betas[1]),
    )
    run = _Run(network, optimiser, session, phases)
    run.resume()
    checks = {
        math.ceil(config.steps * part / config.validations) for part in range(1, config.validations + 1)
    }
    saved = time.monotonic()
    # The step that a batch trains is fixed by its position, so a resumed run asks for the rest alone.
    for batch in task.batches(run.step, config.steps, _workers(config, device)):
        loss = run.train(batch)
        session.report(run.step, config.steps, f"{task.record.name} {session.arm} | loss {loss:.3f}")
        if run.step in checks:
            run.validate()
        if session.stop():
            run.save()
            return Outcome(finished=False)
        due = time.monotonic() - saved > 60 * config.checkpoint_minutes
        if run.step < config.steps and (run.step in checks or due):
            run.save()
            saved = time.monotonic()
    network.load_state_dict(run.best_state)
    return Outcome(run.best_step, run.best, {"criterion": task.criterion})


def groups(
    network: nn.Module,
    config: FinetuneConfig,
    *,
    pretrained: bool,
    added: Collection[nn.Parameter] = (),
) -> list[dict[str, Any]]:
    """Optimiser groups of what requires a gradient, each with its own peak rate `peak`: encoder, then head.

    A pretrained encoder gets `encoder_lr` with layer-wise decay, one from random weights `scratch_lr`, alike
    for all layers; the head and what was added to the encoder get `head_lr` in both.
    """
    optim = config.optim
    head_lr = optim.head_lr if optim.head_lr is not None else head_rate(config.task.kind)
    encoder = network.get_submodule("encoder")
    assert isinstance(encoder, Encoder)
    new = {id(p) for p in (*added, *encoder.added())}
    rate = optim.encoder_lr if pretrained else scratch_rate(config, encoder)
    decay = optim.layer_decay if pretrained else 1.0
    result: list[dict[str, Any]] = []
    for group in param_groups(encoder, weight_decay=optim.weight_decay, layer_decay=decay):
        params = [p for p in group["params"] if id(p) not in new]
        if params:
            result.append({"params": params, "weight_decay": group["weight_decay"],
                           "peak": rate * group["lr_scale"], "encoder": True})  # fmt: skip
    head = [
        (name, p)
        for name, p in network.named_parameters()
        if p.requires_grad and (id(p) in new or not name.startswith("encoder."))
    ]
    for wanted in (True, False):
        for inside in (True, False):
            chosen = [p for name, p in head if decays(name, p) is wanted and (id(p) in new) is inside]
            if chosen:
                result.append({"params": chosen, "weight_decay": optim.weight_decay if wanted else 0.0,
                               "peak": head_lr, "encoder": inside})  # fmt: skip
    return result


def scratch_rate(config: FinetuneConfig, encoder: Encoder) -> float:
    """`optim.scratch_lr`, or what suits the encoder where it is not given."""
    if config.optim.scratch_lr is not None:
        return config.optim.scratch_lr
    convolutions = config.task.kind == "segmentation" and encoder.convolutional
    return 2e-3 if convolutions else 5e-4


def head_rate(kind: str) -> float:
    """Rate of a head where `optim.head_lr` is not given."""
    return _HEAD_LR.get(kind, _OTHER_HEAD_LR)


class _Run:
    """The mutable state of one arm's training."""

    def __init__(
        self, network: nn.Module, optimiser: torch.optim.Optimizer, session: Session, phases: Phases
    ) -> None:
        self.network, self.optimiser, self.phases = network, optimiser, phases
        self.task, self.folder, self.device = session.task, session.folder, session.device
        self.encoder = network.get_submodule("encoder")
        self.tuned = [p for p in self.encoder.parameters() if p.requires_grad]
        ema = session.task.config.optim.ema
        self.average = Average(network, ema) if ema else None
        self.step = 0
        self.best: dict[str, float] = {}
        self.best_step = 0
        self.best_state: dict[str, torch.Tensor] = {}
        self.record = session.record
        self.rows: list[dict[str, Any]] = []
        self._sums = [0.0, 0.0, 0.0]  # loss, gradient norm, steps since the last row

    def train(self, batch: dict[str, torch.Tensor]) -> float:
        """One optimiser step; returns the loss."""
        config = self.task.config
        of_encoder, of_head = self.phases(self.step, config)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * (of_encoder if group["encoder"] else of_head)
        batch = {  # positions stay: the augmentation draws with them on the host
            name: value if name == "position" else value.to(self.device, non_blocking=True)
            for name, value in batch.items()
        }
        self.network.train()
        for parameter in self.tuned:
            parameter.requires_grad_(of_encoder > 0)
        if not of_encoder:  # batch statistics and stochastic depth belong to training, a frozen one has none
            self.encoder.eval()
        cuda = self.device.type == "cuda"
        with torch.random.fork_rng(devices=[self.device] if cuda else []):
            # Dropout and stochastic depth can only draw from torch's generator: keyed by the step, a restart
            # draws the same.
            torch.manual_seed(config.seed * 1_000_003 + self.step)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=cuda):
                loss = self.task.loss(self.network, batch)
        value = loss.item()
        if not math.isfinite(value):
            raise MedloomError(
                f"{self.folder}: the loss is {value} at step {self.step}: lower optim.head_lr and "
                "optim.encoder_lr, or look for broken images with `medloom shards show`"
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.optim.clip)
        self.optimiser.step()
        if self.average:
            self.average.update(self.network, self.step)
        self.step += 1
        self._sums = [a + b for a, b in zip(self._sums, (value, float(norm), 1.0), strict=True)]
        if self.step % _LOG_EVERY == 0 or self.step == config.steps:
            total = self._sums[2]
            self._log({"loss": self._sums[0] / total, "grad_norm": self._sums[1] / total,
                       "lr_share": of_head, "lr_share_encoder": of_encoder})  # fmt: skip
            self._sums = [0.0, 0.0, 0.0]
        return value

    def validate(self) -> None:
        """Score the validation cases; remember the weights when they are the best so far."""
        with self.average.inside(self.network) if self.average else nullcontext():
            found = self.task.validate(self.network, self.device)
            self._log({f"val/{name}": value for name, value in found.items()})
            if not self.best or better(found, self.task) > better(self.best, self.task):
                self.best, self.best_step = found, self.step
                self.best_state = {
                    name: tensor.detach().to("cpu", copy=True)
                    for name, tensor in self.network.state_dict().items()
                }

    def _log(self, values: dict[str, float]) -> None:
        self.rows.append({"step": self.step, "samples": self.step * self.task.plan.batch, **values})
        write_text(self.folder / METRICS, "".join(json.dumps(row) + "\n" for row in self.rows))
        self.record(self.rows[-1])

    def save(self) -> None:
        """Write last.ckpt atomically."""
        state = {
            "step": self.step, "network": self.network.state_dict(), "optimiser": self.optimiser.state_dict(),
            "best": self.best, "best_step": self.best_step, "best_state": self.best_state, "rows": self.rows,
            "sums": self._sums, "average": self.average.state_dict() if self.average else None,
        }  # fmt: skip
        with replacing(self.folder / CHECKPOINT) as temporary:
            torch.save(state, temporary)

    def resume(self) -> None:
        """Continue from last.ckpt where there is a readable one; a damaged one starts the arm again."""
        state = read_checkpoint(self.folder / CHECKPOINT)
        if state is None:
            return
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.step, self.best, self.best_step = state["step"], state["best"], state["best_step"]
        self.best_state, self.rows, self._sums = state["best_state"], state["rows"], state["sums"]
        logger.info("%s: continues at step %d", self.folder, self.step)


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state of an arm's last.ckpt; None where there is none, or a damaged one, which is then removed."""
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        logger.warning("%s is damaged (%s): this arm starts again", path, type(error).__name__)
        path.unlink()
        return None


def _workers(config: FinetuneConfig, device: torch.device) -> int:
    if config.workers is not None:
        return config.workers
    import os

    return min(8, os.cpu_count() or 1) if device.type == "cuda" else 0
