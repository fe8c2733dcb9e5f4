"""Checkpoints in parts: with fsdp2 and `trainer.checkpoint_split` each rank writes what it holds.

RUN/split/step-N is a checkpoint of torch.distributed.checkpoint (which reads it, too): one file a rank, its
metadata, rest.ckpt (what is no tensor) and sums.json (the SHA-256 of each of them, as read back). It gets its
name when all ranks are done. Nothing is gathered, neither here nor when fsdp2 reads it, with any number of
ranks; plain runs put the parts together (`read`), and fsdp2 takes whole checkpoints. The last step is written
whole, for those who read a finished run.

The price against whole checkpoints (sharding.full_state): the step waits for the disk.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from ...data.atomic import TEMPORARY, write_json
from ...data.errors import CheckpointError
from ..fault_tolerance import checkpoint as files
from ..ranks import any_rank

log = logging.getLogger(__name__)

REST = "rest.ckpt"
KEPT = 2  # folders


def save(trainer: pl.Trainer, folder: Path, step: int) -> Path:
    """Write RUN/split/step-N and drop the oldest (a collective call).

    Raises:
        CheckpointError: on all ranks, when one of them cannot write; the ones before are still there.
    """
    final = folder / files.SPLIT / f"step-{step}"
    temporary = final.with_name(f"{TEMPORARY}{final.name}")
    strategy: Any = trainer.strategy
    first = trainer.is_global_zero
    _together(lambda: _fresh(temporary) if first else None)
    strategy.whole = False
    try:
        state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    finally:
        strategy.whole = True
    tensors, rest = _apart(state)
    mine: dict[str, str] = {}  # SHA-256 of the files that this rank has written

    def write() -> None:
        dcp.save(tensors, checkpoint_id=temporary, no_dist=trainer.world_size == 1)
        written = list(temporary.glob(f"__{trainer.global_rank}_*"))
        if first:
            files.write(rest, temporary / REST)
            written += [temporary / ".metadata", temporary / REST]
        mine.update({path.name: files.sha256(path) for path in written})

    _together(write)
    sums: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(sums, mine)
    _together(lambda: _finish(temporary, final, sums) if first else None)
    return final


def _fresh(folder: Path) -> None:
    for unfinished in folder.parent.glob(f"{TEMPORARY}*"):  # of processes that were killed, at any step
        shutil.rmtree(unfinished, ignore_errors=True)
    folder.mkdir(parents=True)


def _finish(temporary: Path, final: Path, sums: list[dict[str, str]]) -> None:
    write_json(temporary / files.SUMS, {name: value for each in sums for name, value in each.items()})
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    for old in list(files.in_parts(final.parent.parent).values())[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def _together(work: Callable[[], Any]) -> None:
    """Do it on every rank; where one cannot write, all of them raise CheckpointError.

    No collective call inside `work` but those of torch.distributed.checkpoint, which ends on all ranks with
    the errors of each: a rank that cannot write would leave the others waiting in it.
    """
    error: OSError | None = None
    try:
        work()
    except OSError as found:
        error = found
    except dcp.CheckpointException as found:  # no Exception, and what happened is inside
        causes = [cause for cause, _ in found.failures.values()]
        error = next((cause for cause in causes if isinstance(cause, OSError)), None)
        if error is None:
            raise
    if any_rank(error is not None):
        why = error if error is not None else "see the message of another rank"
        raise CheckpointError(
            f"{files.SPLIT}: a checkpoint cannot be written ({why}): free space, then resume=true"
        ) from error


def newest(folder: Path) -> Path | None:
    """The checkpoint to resume from, in parts or whole: the one of the later step; None: there is none.

    Raises:
        CheckpointError: there are checkpoints, but none is complete.
    """
    for path in files.in_parts(folder).values():
        reason = fault(path)
        if reason is None:
            try:
                whole = files.newest(folder) if (folder / files.LAST).exists() else None
            except CheckpointError as error:
                log.warning("%s; %s is complete", error, path)
                whole = None
            return path if whole is None or step_of(whole) < step_of(path) else whole
        log.warning("%s: %s; trying the one before", path, reason)
    return files.newest(folder)


def step_of(path: Path | None) -> int:
    """Optimiser steps done in a checkpoint; 0 without one. Reads only what it needs of the file."""
    if path is None:
        return 0
    file = path / REST if path.is_dir() else path
    return int(torch.load(file, map_location="cpu", weights_only=True, mmap=True)["medloom"]["step"])


def fault(path: Path) -> str | None:
    """Why `path` is no complete checkpoint in parts; None when it is one. Reads all of it."""
    try:
        sums: dict[str, str] = orjson.loads((path / files.SUMS).read_bytes())
        wrong = [name for name, value in sums.items() if files.sha256(path / name) != value]
    except (OSError, orjson.JSONDecodeError) as error:
        return f"not readable ({error})"
    return f"the SHA-256 of {wrong[0]} is wrong" if wrong else None


def load(path: Path) -> dict[str, Any]:
    """A checkpoint, whole or in parts, as plain training writes it; by one process for itself."""
    if path.is_dir():
        return read(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def read(path: Path) -> dict[str, Any]:
    """A checkpoint in parts as plain training writes it, whole, in host memory; by one process for itself."""
    metadata: dict[str, Any] = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in metadata.items()
    }
    dcp.load(tensors, checkpoint_id=path, no_dist=True)
    state = torch.load(path / REST, map_location="cpu", weights_only=True)
    moments = state["optimizer_states"][0]["state"]
    for name, x in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "state_dict":
            state["state_dict"][rest] = x
        else:
            number, _, moment = rest.partition("/")
            moments.setdefault(int(number), {})[moment] = x
    return state


def read_weights(module: torch.nn.Module, path: Path) -> None:
    """Each rank reads its part of the weights (a collective call)."""
    dcp.load({f"state_dict/{name}": x for name, x in module.state_dict().items()}, checkpoint_id=path)


def read_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Any], path: Path) -> None:
    """Each rank reads its part of the moments (a collective call); `state`: what rest.ckpt has of them."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    of_number = dict(zip(numbers, parameters, strict=True))
    metadata: dict[str, Any] = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    places: dict[str, Tensor] = {}
    moments = {number: dict(values) for number, values in state["state"].items()}
    for name, entry in metadata.items():
        kind, number, moment = (*name.split("/", 2), "", "")[:3]
        if kind != "optimizer":
            continue
        like = of_number[int(number)]
        size, dtype = entry.size, entry.properties.dtype
        same = tuple(size) == tuple(like.shape)
        place = torch.zeros_like(like, dtype=dtype) if same else torch.zeros(size, dtype=dtype)
        places[name] = moments.setdefault(int(number), {})[moment] = place.detach()
    dcp.load(places, checkpoint_id=path)
    optimiser.load_state_dict({**state, "state": moments})


def _apart(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of weights and moments by one name each, and everything else."""
    tensors = {f"state_dict/{name}": x for name, x in state["state_dict"].items()}
    (optimiser,) = state["optimizer_states"]
    others: dict[int, dict[str, Any]] = {}
    for number, moments in optimiser["state"].items():
        for name, x in moments.items():
            if isinstance(x, Tensor):
                tensors[f"optimizer/{number}/{name}"] = x
            else:
                others.setdefault(number, {})[name] = x
    return tensors, {**state, "state_dict": {}, "optimizer_states": [{**optimiser, "state": others}]}


class CheckpointFiles(TorchCheckpointIO):
    """How plain strategies read a checkpoint: whole, or in parts."""

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        """See `read`."""
        return (
            read(Path(path)) if Path(path).is_dir() else super().load_checkpoint(path, *arguments, **options)
        )
