"""`finetune(config)`: a task, an encoder and its baselines -> a run folder. Read it from top to bottom.

All arms see the same cases, examples, augmentation and number of steps. The folder holds config.yaml,
encoder.json (what the encoder says of itself), split.csv, skipped.json, plan.yaml, and for each arm
model.safetensors, arm.json and metrics.jsonl. The same command continues a killed run: a finished arm (it has
arm.json, written last) is not repeated, an unfinished one goes on from its last checkpoint. Another
configuration in the same folder is refused.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.atomic import replacing, sweep, write_json, write_text
from ..data.config import read_yaml, to_dict, to_yaml
from ..data.errors import CheckpointError, ConfigError, MedloomError
from ..pretrain.contract import strangers
from ..pretrain.encoders import Encoder, build_encoder
from ..pretrain.fault_tolerance.preempt import StopSignal
from ..pretrain.folder import environment
from ..pretrain.transfer import Report
from ..pretrain.weights import load_encoder
from .config import FinetuneConfig
from .data import TaskData, prepare
from .mirror import FinetuneMirror, mirrored
from .planner import Plan, fingerprint, make_plan
from .protocols import PROTOCOLS, Outcome, Protocol, Session
from .protocols.gradient import CHECKPOINT
from .slices import fitted, restored
from .splits import make_split, read_split, take_fold, take_fraction, take_shots, write_split
from .targets import check_split
from .tasks import TASKS, Task
from .tasks.segmentation import foreground_statistics

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
CONFIG, SPLIT, PLAN, ARM, MODEL, ENCODER = (
    "config.yaml", "split.csv", "plan.yaml", "arm.json", "model.safetensors", "encoder.json",
)  # fmt: skip

# What a continued run may change: where things lie and on what it runs, never what it computes.
_FREE = (
    "out", "root", "cache", "features", "features_gib", "device", "workers", "checkpoint_minutes",
    "memory_gib", "tracking",
)  # fmt: skip


def finetune(config: FinetuneConfig, progress: Progress | None = None) -> Path:
    """Train every arm and return the run folder.

    Raises:
        ConfigError: encoder and task do not fit, or the folder belongs to another run.
        CollectionError: the task's data cannot be used (missing, class absent, subject in two splits).
        CheckpointError: the encoder cannot be loaded.
    """
    config.tracking.require()
    folder = config.folder
    device = choose_device(config.device)
    stop = StopSignal()
    with _opened(folder, config):
        encoder, report = load_encoder(config.encoder)
        logger.info("%s", report)
        data = prepare(
            config.task,
            root=config.root or ".",
            cache=config.cache,
            workers=config.workers or 0,
            progress=progress,
        )
        split = _split(folder, config, data)
        plan = _plan(folder, config, data, split, encoder, report, device)
        if not (folder / ENCODER).exists():
            write_json(folder / ENCODER, _provenance(config.encoder, report.record))
        task = TASKS[config.task.kind](config, data, plan, split)
        stop.install()
        try:
            todo = [arm for arm in arms(config) if not (folder / arm / ARM).is_file()]
            with mirrored(config, folder, data.shards.manifest) if todo else nullcontext() as mirror:
                for arm in todo:
                    if not _arm(task, arm, folder / arm, device, stop, progress, mirror):
                        logger.warning("stopped by %s; the same command continues", stop.received)
                        return folder
        finally:
            stop.uninstall()
            data.shards.close()
    return folder


def arms(config: FinetuneConfig) -> list[str]:
    """Arms in the order in which they run.

    `pretrained`; with baselines also `scratch` (the same network, everything trained from random weights)
    and, where the protocol leaves the encoder frozen, `random` (frozen random features, the floor).
    """
    if config.arm or not config.baseline:
        return [config.arm or "pretrained"]
    return (
        ["pretrained", "random", "scratch"]
        if PROTOCOLS[config.protocol].frozen
        else ["pretrained", "scratch"]
    )


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU. Raises ConfigError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device=cuda, but torch sees no CUDA device: use device=cpu, or see `medloom doctor`"
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device=mps, but torch sees none: use device=cpu")
    return torch.device(name)


def read_run(folder: Path) -> tuple[FinetuneConfig, Plan, dict[str, str]]:
    """Configuration, plan and split (key -> split) of a run folder.

    Raises:
        ConfigError: not a fine-tuning run.
    """
    from ..data.config import structured

    for name in (CONFIG, SPLIT, PLAN):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder}: has no {name}: give the run folder that `medloom finetune` printed")
    config = structured(FinetuneConfig, folder / CONFIG, where=str(folder / CONFIG))
    return config, Plan.from_dict(read_yaml(folder / PLAN)), read_split(folder / SPLIT)


def finished(folder: Path, config: FinetuneConfig) -> bool:
    """Whether every arm of the run in `folder` is trained (a signal may have stopped it before)."""
    return all((folder / arm / ARM).is_file() for arm in arms(config))


def load_arm(task: Task, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The trained network of an arm, on the CPU, and its arm.json.

    Raises:
        CheckpointError: the arm is not finished, or its weights are damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / ARM).is_file():
        raise CheckpointError(f"{folder}: this arm is not finished: run the same `medloom finetune` again")
    facts = json.loads((folder / ARM).read_text())
    encoder = restored(build_encoder(facts["encoder"]), task.plan.ndim, task.config.dims)
    network = PROTOCOLS[facts["protocol"]].network(task, encoder)
    try:
        network.load_state_dict(load_file(folder / MODEL))
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{folder / MODEL}: cannot be loaded ({reason}): delete {folder} and run `medloom finetune` again"
        ) from error
    if facts.get("learnt"):
        task.recall(facts["learnt"])
    return network.eval(), facts


def _arm(
    task: Task,
    arm: str,
    folder: Path,
    device: torch.device,
    stop: StopSignal,
    progress: Progress | None,
    mirror: FinetuneMirror | None,
) -> bool:
    """Train one arm and write it; False when a signal stopped it (its state is saved)."""
    from safetensors.torch import save_file

    config = task.config
    folder.mkdir(exist_ok=True)
    begin = time.monotonic()
    # Both of the others start from random weights, the same ones: "scratch" trains them, "random" does not.
    source = config.encoder if arm == "pretrained" else f"random:{config.encoder.removeprefix('random:')}"
    encoder, report = load_encoder(source, in_channels=task.plan.channels, seed=config.seed)
    encoder = fitted(
        encoder, report, ndim=task.plan.ndim, dims=config.dims, spacing=task.plan.fingerprint.spacing,
        seed=config.seed,
    )  # fmt: skip
    # What is trained from random weights is trained whole: to spare them would make a weak baseline.
    protocol = PROTOCOLS[config.protocol if arm != "scratch" else "full"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1)  # the heads of all arms start alike
        network = protocol.network(task, encoder)
    session = Session(task, arm, folder, device, lambda: stop.received is not None, progress)
    if mirror is not None:
        session.record = mirror.rows_of(arm)
    outcome = protocol.fit(network, session)
    if not outcome.finished:
        return False
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with replacing(folder / MODEL) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    facts = _facts(arm, protocol, encoder, network, outcome, time.monotonic() - begin)
    write_json(folder / ARM, facts | {"learnt": task.learnt()})
    (folder / CHECKPOINT).unlink(missing_ok=True)
    if mirror is not None:
        mirror.finished(arm, folder)
    return True


def _facts(
    arm: str, protocol: Protocol, encoder: Encoder, network: nn.Module, outcome: Outcome, seconds: float
) -> dict[str, Any]:
    section = to_dict(encoder.config)
    if "pretrained" in section:
        section["pretrained"] = False  # the weights are in model.safetensors
    parameters = sum(p.numel() for p in network.parameters())
    of_encoder = sum(p.numel() for p in encoder.parameters())
    return {
        "arm": arm,
        "protocol": protocol.name,
        "frozen": protocol.frozen,
        "encoder": section,
        "parameters": {"encoder": of_encoder, "head": parameters - of_encoder},
        "step": outcome.step,
        "validation": outcome.validation,
        "seconds": round(seconds, 1),
        **outcome.facts,
    }


@contextmanager
def _opened(folder: Path, config: FinetuneConfig) -> Iterator[None]:
    """Create the run folder or open it to continue; one process at a time."""
    existing = folder / CONFIG
    now = to_dict(config)
    if existing.is_file():
        changed = differences(read_yaml(existing), now)
        if changed:
            raise ConfigError(
                f"{folder}: holds a run with another configuration ({'; '.join(changed[:3])}): choose "
                "another out=, or delete the folder"
            )
    elif folder.is_dir() and any(path.name != ".lock" for path in folder.iterdir()):
        raise ConfigError(f"{folder}: exists and is no fine-tuning run: choose another out=")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{folder}: another process is training in it: wait, or choose another out="
            ) from error
        except OSError as error:  # some network file systems have no locks
            logger.warning("%s cannot be locked (%s): do not start this run twice", folder, error)
        for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
            sweep(place)
        fresh = not existing.is_file()
        if fresh:
            write_text(existing, to_yaml(config))
        write_json(folder / "env.json", environment())
        try:
            yield
        except MedloomError:
            if fresh and not any(path.is_dir() for path in folder.iterdir()):
                shutil.rmtree(folder)  # nothing was trained: the corrected command may use the name again
            raise


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two configurations disagree on, in words; where things lie and on what they run does not count."""
    keys = sorted((before.keys() | now.keys()) - set(_FREE), key=str)
    # Through JSON, because YAML gives integer keys back where JSON has text.
    plain = [json.loads(json.dumps(side, default=str)) for side in (dict(before), dict(now))]
    return [
        f"{key} was {plain[0].get(key)!r:.60}, is {plain[1].get(key)!r:.60}"
        for key in map(str, keys)
        if plain[0].get(key) != plain[1].get(key)
    ]


def _split(folder: Path, config: FinetuneConfig, data: TaskData) -> dict[str, str]:
    """Key -> train | val | test | unused; drawn once and then read from split.csv."""
    path = folder / SPLIT
    items = data.items()
    if path.is_file():
        split = read_split(path)
        changed = {item.key for item in items}.symmetric_difference(split)
        if changed:
            raise ConfigError(
                f"{path}: {len(changed)} cases came or went since the split was drawn: choose another out="
            )
        return split
    split = make_split(items, config.task.split, data.rank)
    if config.fold is not None:
        split = take_fold(items, split, config.fold, config.folds, config.task.split.seed, data.rank)
    train = [item for item in items if split[item.key] == "train"]
    if config.shots:
        taken = take_shots(train, config.shots, config.draw, data.rank)
    else:
        taken = take_fraction(train, config.fraction, config.draw, data.rank)
    used = {item.key for item in taken}
    final = {key: part if part != "train" or key in used else "unused" for key, part in split.items()}
    check_split(config.task, data.cases, items, final)
    write_json(folder / "skipped.json", data.skipped)
    write_split(path, items, split, used)
    return final


def _plan(
    folder: Path,
    config: FinetuneConfig,
    data: TaskData,
    split: Mapping[str, str],
    encoder: Encoder,
    report: Report,
    device: torch.device,
) -> Plan:
    """The plan; a continued run reads it, because free memory may have changed."""
    path = folder / PLAN
    if path.is_file():
        return Plan.from_dict(read_yaml(path))
    said = report.record.get("input") or {}
    train = [case for case in data.cases if split[case.key] == "train"]
    metas = [case.meta for case in train]
    seen = fingerprint(metas, config.task.spacing)
    encoder = fitted(encoder, report, ndim=seen.ndim, dims=config.dims, spacing=seen.spacing)
    foreground = foreground_statistics(data, train) if config.task.kind == "segmentation" else None
    plan = make_plan(
        config.task, config, metas, encoder, device=device.type, crop=said.get("crop"),
        foreground=foreground, contract=said,
    )  # fmt: skip
    plan = TASKS[config.task.kind].refined(plan, config, data, train, encoder)
    for line in plan.describe(encoder.patch_of(plan.ndim)):
        logger.info("plan: %s", line)
    modalities = [str(meta["modality"]) for meta in metas]
    for strange in strangers(said, modalities, plan.spacing or plan.fingerprint.spacing):
        logger.warning("encoder: %s; expect less of it", strange)
    write_text(path, to_yaml(plan.to_dict()))
    return plan


def _provenance(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """encoder.json of the run: the encoder's own; of weights that have none, their name."""
    if name.startswith(
        "random:"
    ):  # the record is that of the architecture's source: nothing of it was learnt
        return {"source": public_name(name)}
    return dict(record) or {"source": public_name(name)}


def public_name(name: str) -> str:
    """An encoder's name without the folders of this machine."""
    kind, colon, rest = name.rpartition(":")
    return f"{kind}{colon}{Path(rest).name}"
