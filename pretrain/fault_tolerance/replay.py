"""Repeat a bad step of a run on one process and say where it goes wrong: `medloom pretrain --replay`.

The record names the positions of the step, from which the shards give the same pixels, views and masks; the
weights are those before the step where RUN/bad kept them, else those of the newest checkpoint. The ranks'
parts run one after the other, each with its own random state; an objective that compares images of all ranks
gets them as one batch. What stays different: another device or precision, and the rounding of sums. The
price: forward and backward pass of one global batch, and one forward pass for each of its samples.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...data.config import polymorphic
from ...data.errors import CheckpointError, ConfigError
from ...data.loader.batches import collate
from ...data.stream.stream import Stream
from ..cluster.detect import autocast, on_gpu, precision
from ..config import PretrainConfig
from ..encoders import build_encoder
from ..gradients import GradientNorms
from ..module import PretrainModule, seed_micro_batch
from ..objectives import OBJECTIVES
from ..probes import on_device
from ..scale import split
from .bad_steps import BadSteps, Record
from .guard import Guard

log = logging.getLogger(__name__)

HUGE = 100.0  # normalised intensity that no intact image has


@dataclass
class Findings:
    """What a replay has seen."""

    record: Record
    weights_step: int  # steps done when the weights were as they are here
    precision: str
    samples: list[dict[str, Any]] = field(default_factory=list)  # one row each, see `_sample`
    losses: list[tuple[float, float]] = field(default_factory=list)  # (recorded, here) of each part
    norms: dict[str, float] = field(default_factory=dict)  # gradient norm in all and by part
    parameter: str | None = None  # first that is not finite before the step
    forward: str | None = None  # first module whose output is not finite though its input is
    backward: str | None = None  # first from the loss on to whose output no finite gradient comes back

    @property
    def repeats(self) -> bool:
        """Whether the step is as bad here."""
        if self.record.kind == "spike":
            return math.isclose(self.norms["all"], float(self.record.norm or 0), rel_tol=0.1)
        values = [here for _, here in self.losses]
        return not all(map(math.isfinite, [*values, *self.norms.values()]))

    def lines(self) -> list[str]:
        """What was found, in words, the cause first."""
        found = []
        if self.weights_step != self.record.step - 1:
            found.append(
                f"the weights are those after step {self.weights_step}: the ones before step "
                f"{self.record.step} were not kept (trainer.on_nonfinite=rollback keeps them)"
            )
        strange = [row for row in self.samples if not row["largest"] < HUGE]
        for row in strange:
            found.append(
                f"sample {row['key']}: largest normalised intensity {row['largest']:.3g}: look at it"
            )
        if self.parameter is not None:
            found.append(
                f"parameter {self.parameter} is not finite before the step: the step is not to blame"
            )
        if self.forward is not None:
            found.append(f"forward pass: the first output that is not finite is that of {self.forward}")
        elif self.backward is not None:
            found.append(f"backward pass: no finite gradient reaches the output of {self.backward}")
        if not self.repeats:
            found.append(
                f"does not repeat here ({self.precision}, one process): another precision, a kernel that is "
                "not deterministic, or faulty hardware; try the same device and trainer.precision"
            )
        elif self.record.kind == "nonfinite" and not strange and self.parameter is None:
            found.append("the images are sound: lower optim.base_lr, or train in float32")
        return found


def replay(record: Record, folder: Path, config: PretrainConfig) -> Findings:
    """Repeat the step of `record` from the run in `folder`.

    Args:
        config: of the run; where its shards are and on what to compute may differ.

    Raises:
        ConfigError: the objective has changed since; no shards.
        CheckpointError: there are no weights at all.
    """
    wanted = config.trainer.accelerator
    device = torch.device("cuda" if on_gpu(wanted) else "cpu")
    encoder = build_encoder(config.encoder, download=False)
    kind, section = polymorphic(config.objective, OBJECTIVES, "objective")
    module = PretrainModule(config, encoder, kind(section, encoder), Guard(config.trainer, BadSteps(folder)))
    weights_step = load_weights(module, folder, record)
    module.to(device).train()
    found = Findings(record, weights_step, precision(config.trainer.precision, wanted))
    bad = (name for name, p in module.named_parameters() if not bool(p.isfinite().all()))
    found.parameter = next(bad, None)
    stream = Stream(config.data)
    with _first_bad(module, found):
        for part in parts(record, together=module.objective.least_batch > 1):
            with autocast(found.precision, device.type):
                seed_micro_batch(config.seed, record.step - 1, part["rank"], part["micro"])
                output = module.objective.step(_batch(module, stream, part["positions"], record), encoder)
            found.losses.append((float(part["loss"]), float(output.loss.detach())))
            (output.loss * part["weight"]).backward()
    total, norms = GradientNorms(encoder, module.objective).clip(None)
    found.norms = {"all": float(total), **{name.partition("/")[2]: float(n) for name, n in norms.items()}}
    alone = module.objective.least_batch == 1
    found.samples = [
        _sample(module, stream, row, record, autocast(found.precision, device.type) if alone else None)
        for row in _rows(record)
    ]
    return found


def load_weights(module: PretrainModule, folder: Path, record: Record) -> int:
    """Load the weights before the step, or of the newest checkpoint; returns how many steps they saw."""
    path = folder / "bad" / f"step-{record.step}.ckpt"
    if not path.is_file():
        last = split.newest(folder)
        if last is None:
            raise CheckpointError(
                f"{folder}: neither {path.name} in bad/ nor a checkpoint: nothing to replay"
            )
        path = last
    state = split.load(path)
    try:
        module.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        line = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ConfigError(f"{path}: made by another version of the objective ({line})") from error
    return int(state["medloom"]["step"])


def parts(record: Record, *, together: bool) -> list[dict[str, Any]]:
    """The micro-batches of the ranks in their order: rank, micro, positions, loss, weight in the gradient.

    Args:
        together: the ranks' rows of a micro-batch as one batch, as their loss sees them.
    """
    if not together:
        share = 1.0 / len(record.batches)
        return [{**batch, "weight": share} for batch in record.batches]
    joined = []
    for micro in range(record.accumulate):
        batches = [batch for batch in record.batches if batch["micro"] == micro]
        positions = [position for batch in batches for position in batch["positions"]]
        loss = sum(float(batch["loss"]) for batch in batches) / len(batches)
        joined.append({"rank": 0, "micro": micro, "positions": positions, "loss": loss})
    return [{**batch, "weight": 1.0 / len(joined)} for batch in joined]


def _batch(module: PretrainModule, stream: Stream, positions: list[int], record: Record) -> Any:
    batch = collate(stream.__getitems__(positions))
    batch["host_position"] = batch["position"].numpy().copy()
    device = next(module.parameters()).device
    return module.prepared(on_device(batch, device), record.step - 1)


def _rows(record: Record) -> list[dict[str, Any]]:
    return [
        {"rank": batch["rank"], "micro": batch["micro"], "position": position, "key": key}
        for batch in record.batches
        for position, key in zip(batch["positions"], batch["keys"], strict=True)
    ]


@torch.no_grad()
def _sample(
    module: PretrainModule, stream: Stream, row: dict[str, Any], record: Record, within: Any
) -> dict[str, Any]:
    """`row` with the largest normalised intensity of its image and its loss as a batch of its own.

    Without `within` the objective compares images, and a sample has no loss.
    """
    batch = _batch(module, stream, [row["position"]], record)
    loss = None
    if within is not None:
        with within, contextlib.suppress(ValueError):  # a batch norm of one value
            seed_micro_batch(module.config.seed, record.step - 1, row["rank"], row["micro"])
            loss = float(module.objective.step(batch, module.encoder).loss)
    return {**row, "largest": float(batch.image.float().abs().max()), "loss": loss}


@contextlib.contextmanager
def _first_bad(module: nn.Module, found: Findings) -> Iterator[None]:
    """Note the first module whose output, and in the backward pass whose gradient, is not finite."""
    names = {part: name or type(part).__name__ for name, part in module.named_modules()}

    def forward(part: nn.Module, inputs: Any, output: Any) -> None:
        named = f"{names[part]} ({type(part).__name__})"
        if found.forward is None and not _finite(output):
            found.forward = named

        def backward(gradient: Tensor) -> None:
            if found.backward is None and not _finite(gradient):
                found.backward = named

        # Not a backward hook of the module: those forbid to change its output in place, which networks do.
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(backward)

    hooks = [part.register_forward_hook(forward) for part in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    return True
