"""RUN/bad: one record of each bad step, and the weights that it met.

step-N.json (N as in the rows) says what was wrong and which samples were in the step; step-N.ckpt holds the
weights before it, of the first `MOST_WEIGHTS` bad steps. `medloom pretrain --replay` repeats the step from
both. Sample keys are those of the shards, made with the collection's salt.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist
from torch import Tensor

from ...data.atomic import replacing, write_json
from ...data.errors import ConfigError
from .. import ranks
from .checkpoint import write

log = logging.getLogger(__name__)

FOLDER = "bad"
MOST_WEIGHTS = 3  # as large as the network each
_SHOWN = 8  # sample keys in a message


@dataclass(frozen=True)
class Part:
    """A micro-batch of one rank."""

    keys: list[str]
    positions: Any  # int64 [B]
    loss: Tensor  # scalar on the device


@dataclass(frozen=True, kw_only=True)
class Record:
    """A bad step. Numbers that are not finite stand as "nan" or "inf" in the file."""

    step: int  # as in the rows: the first is 1
    kind: str  # nonfinite | spike
    action: str  # stop | skip | rollback
    checkpoint: int  # step of the newest checkpoint then
    ranks: int
    accumulate: int
    norm: float | str | None = None  # global gradient norm before clipping
    usual_norm: float | str | None = None  # its median before, where it is a spike
    batches: list[dict[str, Any]] = field(default_factory=list)  # rank, micro, loss, keys, positions

    @property
    def line(self) -> str:
        """What was found, in words."""
        wrong = [batch for batch in self.batches if isinstance(batch["loss"], str)]
        keys = [key for batch in wrong or self.batches for key in batch["keys"]]
        shown = ", ".join(keys[:_SHOWN]) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")
        if wrong:
            what = f"rank {wrong[0]['rank']}: the loss is {wrong[0]['loss']}"
        elif self.kind == "spike":
            assert isinstance(self.norm, float) and isinstance(self.usual_norm, float)
            what = f"the gradient norm is {self.norm:.3g}, {self.norm / self.usual_norm:.0f} × its median"
        else:
            what = f"the gradient norm is {self.norm}"
        return f"step {self.step}, {what}; samples {shown}"


class BadSteps:
    """The bad steps of a run: those that are left out, and the files that say so."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self._records: dict[int, tuple[str, int]] = {}  # step as in the rows -> action, checkpoint
        for path in sorted(self.folder.glob("step-*.json")):
            record = read_record(path)
            self._records[record.step] = (record.action, record.checkpoint)

    def __len__(self) -> int:
        return sum(action != "stop" for action, _ in self._records.values())

    def __contains__(self, step: int) -> bool:
        """Whether the update of optimiser step `step`, the first being 0, is left out."""
        return self._records.get(step + 1, ("stop", 0))[0] != "stop"

    def file(self, number: int) -> Path:
        """The record of step `number` of the rows."""
        return self.folder / f"step-{number}.json"

    def from_checkpoint(self, step: int) -> int:
        """How often the run went back to the checkpoint of this step."""
        return sum(record == ("rollback", step) for record in self._records.values())

    def share(self, strategy: Any) -> None:
        """Take what rank 0 knows: other machines may see older files (a collective call)."""
        self._records = strategy.broadcast(self._records)

    def add(self, record: Record, *, write: bool) -> None:
        """Note a bad step, on all ranks; one of them writes the file."""
        self._records[record.step] = (record.action, record.checkpoint)
        if write:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.file(record.step), asdict(record))

    def keep_weights(self, trainer: pl.Trainer, step: int) -> None:
        """Write the weights as they are, before the update of `step` (a collective call)."""
        path = self.folder / f"step-{step + 1}.ckpt"
        wanted = not path.exists() and len(list(self.folder.glob("*.ckpt"))) < MOST_WEIGHTS
        if not trainer.strategy.broadcast(wanted):
            return
        weights = trainer.strategy.lightning_module_state_dict()
        if not trainer.is_global_zero:
            return
        try:
            with replacing(path) as temporary:
                write({"state_dict": weights, "medloom": {"step": step}}, temporary)
        except OSError as error:
            log.warning("%s: cannot be written (%s); a replay takes the newest checkpoint", path, error)


def record_of(step: int, kind: str, action: str, facts: dict[str, Any], parts: Sequence[Part],
              accumulate: int, *, checkpoint: int) -> Record:  # fmt: skip
    """The record of optimiser step `step`, the first being 0, from all ranks' parts (a collective call)."""
    mine = [
        {"rank": ranks.rank(), "micro": micro, "loss": plain(float(part.loss)), "keys": part.keys,
         "positions": [int(p) for p in part.positions]}
        for micro, part in enumerate(parts)
    ]  # fmt: skip
    everybody: list[Any] = [mine]
    if ranks.world() > 1:
        everybody = [None] * ranks.world()
        dist.all_gather_object(everybody, mine)
    return Record(
        step=step + 1, kind=kind, action=action, checkpoint=checkpoint, ranks=ranks.world(),
        accumulate=accumulate, batches=[batch for batches in everybody for batch in batches],
        **{name: plain(value) for name, value in facts.items()},
    )  # fmt: skip


def read_record(path: Path) -> Record:
    """Read a step-N.json.

    Raises:
        ConfigError: no such file, or not a record.
    """
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: no record of a bad step ({error}); they lie in RUN/bad") from error


def plain(value: float) -> float | str:
    """A number as JSON can hold it."""
    return value if math.isfinite(value) else str(value)
