"""What would stop a job after hours in a queue, found before it is submitted.

The configuration loads, the batch divides over the ranks, the network is built once on this machine (seconds,
and its memory), shards are opened where this machine sees them, the run folder is free or is this run's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .doctor import Finding, shards

if TYPE_CHECKING:
    from ..pretrain.cluster.job import Job
    from ..pretrain.config import PretrainConfig


def preflight(job: Job, *, grace: bool) -> list[Finding]:
    """Findings of a job; `grace` says whether it decides how long there is between signal and kill."""
    config = copy.deepcopy(job.config)  # what the shards and `init_from` decide is filled in here
    found = [*_batch(job), *_data(job, config), *_network(job, config)]
    if job.shared:
        sound = all(finding.state != "fault" for finding in found)
        found += _folder(job, config if sound else None)
    else:
        found += _mounts(job)
    return [*found, *_time(job)] if grace else found


def _batch(job: Job) -> Iterator[Finding]:
    from ..data.errors import ConfigError
    from ..pretrain.config import per_rank_batch

    world = job.nodes * job.ranks
    ranks = f"{job.nodes} nodes × {job.ranks} ranks"
    try:
        parts = per_rank_batch(job.config, world)
    except ConfigError as error:
        yield Finding("batch", "fault", ranks, str(error))
        return
    each = ", ".join(str(part) for part in parts)
    yield Finding("batch", "ok", f"{ranks} × {job.config.trainer.accumulate} micro-batches × {each} samples")


def _data(job: Job, config: PretrainConfig) -> Iterator[Finding]:
    from ..data.errors import MedloomError
    from ..pretrain.run import open_data, resolve_classes, resolve_steps

    where, world = str(config.data.shards), job.nodes * job.ranks
    if where and not job.shared and "://" not in where and not Path(where).exists():
        yield Finding("shards", "note", f"{where} is not seen from here", "not checked")
        return
    try:
        data = open_data(config)
        resolve_steps(config, data)
        resolve_classes(config, data)
    except MedloomError as error:
        yield Finding("shards", "fault", where or "none named", str(error))
        return
    largest = max(part.batch_size for part in config.data.each())
    # The batch over the ranks has a finding of its own, for all shapes of a run.
    found = shards(where, world, config.data.workers, largest)
    yield from (finding for finding in found if finding.what != "batch over ranks")


def _network(job: Job, config: PretrainConfig) -> Iterator[Finding]:
    from ..data.errors import ConfigError, MedloomError
    from ..pretrain.config import per_rank_batch
    from ..pretrain.run import build

    try:
        encoder, objective, _ = build(config)
    except MedloomError as error:
        yield Finding("network", "fault", str(config.encoder.get("name", config.init_from)), str(error))
        return
    count = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    name = f"{config.objective['name']} of {config.encoder['name']}, {count:.1f} M parameters"
    try:
        few = min(per_rank_batch(config, job.nodes * job.ranks)) < objective.least_batch
    except ConfigError:  # a finding of its own
        few = False
    mend = f"needs {objective.least_batch} samples a rank: a larger batch, or fewer ranks"
    yield Finding("network", "fault" if few else "ok", name, mend if few else "")


def _folder(job: Job, config: PretrainConfig | None) -> Iterator[Finding]:
    from ..data.config import read_yaml, to_dict
    from ..pretrain.config import differences
    from ..pretrain.folder import CONFIG

    folder = job.directory / job.config.folder
    saved = folder / CONFIG
    if not folder.exists() or not any(folder.iterdir()):
        yield Finding("run folder", "ok", str(job.config.folder))
    elif not job.config.resume:
        mend = "resume=true continues it; or another out=..."
        yield Finding("run folder", "fault", f"{job.config.folder} exists", mend)
    elif config and saved.is_file() and (changed := differences(read_yaml(saved), to_dict(config))):
        yield Finding("run folder", "fault", "; ".join(changed), "start a new run with init_from=...")
    else:
        yield Finding("run folder", "ok", f"{job.config.folder} is continued")


def _time(job: Job) -> Iterator[Finding]:
    trainer = job.config.trainer
    enough = job.grace >= trainer.grace_seconds
    yield Finding(
        "grace", "ok" if enough else "fault", f"{job.grace} s before the end",
        "" if enough else f"trainer.grace_seconds is {trainer.grace_seconds:g}: raise --grace or lower it",
    )  # fmt: skip


def _mounts(job: Job) -> Iterator[Finding]:
    """Pods and rented machines are new ones after a preemption: what must stay lies on a mount."""
    kept = job.config.out.startswith("/") and any(
        job.config.out.startswith(f"{target.rstrip('/')}/") for _, target in job.mounts
    )
    yield Finding(
        "where the run stays", "ok" if kept else "fault", job.config.out or "out= is not given",
        "" if kept else "--mount SOURCE:/FOLDER and out=/FOLDER/..., or a preemption loses the run",
    )  # fmt: skip
    known = bool(job.image or job.setup)
    yield Finding(
        "medloom there", "ok" if known else "fault", job.image or "; ".join(job.setup),
        "" if known else "--image with medloom inside, or --setup 'pip install ...'",
    )  # fmt: skip
