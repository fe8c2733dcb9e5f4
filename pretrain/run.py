"""`pretrain(config)`: from shards to a run folder with an encoder. Read it from top to bottom.

The same function runs under plain Python, torchrun and srun. A run that is killed at any moment and started
again with `resume=true` gives the rows of an undisturbed run (bit for bit on a CPU), because order, crops,
views, masks and schedules are functions of (seed, step) and the checkpoint holds the rest. What a kill
costs: the steps since the last checkpoint.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ..data.config import polymorphic, to_dict
from ..data.datamodule import PretrainData
from ..data.draws import stream_key
from ..data.errors import ConfigError
from ..data.loader.batches import collate
from ..data.shards.manifest import Manifest
from ..data.stream.steps import StepPlan
from ..data.stream.stream import Stream
from . import ranks
from .artefact import WEIGHTS
from .cluster.detect import Launch, detect, is_main_process, precision
from .cluster.peers import give_up_after, watched
from .config import PretrainConfig, complete, per_rank_batch
from .continued import continue_objective
from .contract import input_contract
from .encoders import Encoder, build_encoder
from .fault_tolerance import preempt
from .fault_tolerance.bad_steps import BadSteps
from .fault_tolerance.guard import Guard, Rollback
from .fault_tolerance.saving import Checkpointing
from .folder import RunFolder
from .mirror import Mirror
from .module import PretrainModule
from .monitor.heartbeat import Heartbeat
from .objectives import OBJECTIVES, Objective
from .panels import draw_panels, varied
from .probes import Probe, cadence, on_device
from .recorder import Recorder
from .scale.memory import settle_accumulate
from .scale.profile import Profiling
from .scale.sharding import gathered
from .scale.split import CheckpointFiles, newest, step_of
from .scale.strategy import build_strategy
from .stall import StallWatch
from .weights import load_encoder, load_into, save_encoder

log = logging.getLogger(__name__)


def pretrain(
    config: PretrainConfig,
    progress: Callable[[int, int, str], None] | None = None,
    stop: preempt.StopSignal | None = None,
) -> Path:
    """Train and return the run folder; docs/pretraining.md says what is in it.

    Asked to stop (by a signal or a time limit), it returns after a checkpoint; SLURM queues it again.

    Args:
        stop: listens to signals already; None: from here on.

    Raises:
        ConfigError: the configuration contradicts itself, the machine or the existing run folder.
        ShardError: the shards cannot be read.
        CheckpointError: no checkpoint can be read, or none can be written.
        BadStep: `trainer.on_nonfinite` or `on_spike` stops the run; names step, rank and samples.
    """
    if stop is None:
        with preempt.StopSignal() as stop:
            return pretrain(config, progress, stop)
    config = complete(config)
    main, launch = is_main_process(), detect(config.trainer)
    data = open_data(config)
    resolve_steps(config, data)
    resolve_classes(config, data)
    encoder, objective, ancestor = build(config)  # fills config.encoder where init_from decides it
    trainer = make_trainer(config, launch)
    log_arithmetic(config, trainer.world_size, objective)
    with (
        Mirror(config, main=main) as mirror,
        RunFolder(config, main=main, manifest=data.shards.manifest.hash) as folder,
        Heartbeat(folder.path, main=main, steps=config.steps, ranks=trainer.world_size) as beat,
    ):
        checkpoint = newest(folder.path) if config.resume else None
        start = step_of(checkpoint)
        if start >= config.steps and (folder.path / WEIGHTS).is_file():
            log.info("%s is complete at step %d", folder.path, start)
            return folder.path
        if stop.received and leaves_before_start(config, trainer.world_size, main, beat):
            return folder.path
        known = BadSteps(folder.path)
        mirror.open(folder.path, start, data, ancestor)
        while True:
            module = PretrainModule(config, encoder, objective, Guard(config.trainer, known))
            try:
                finished = fit(trainer, module, data, folder.path, checkpoint, beat, stop, mirror, progress)
                break
            except Rollback as back:
                log.warning("%s", back)
            ranks.barrier()  # rank 0 may still have been writing
            encoder, objective, ancestor = build(config)
            trainer, checkpoint = make_trainer(config, launch), newest(folder.path)
        if finished:
            write_encoder(config, data, objective, encoder, ancestor, mirror)
    if main and not finished and config.trainer.requeue and preempt.requeue():
        beat.requeued()
    return folder.path


def write_encoder(
    config: PretrainConfig,
    data: Stream,
    objective: Objective,
    encoder: Encoder,
    ancestor: Any,
    mirror: Mirror,
) -> None:
    """Write what a finished run gives into its folder; a collective call."""
    released = gathered(objective.released(encoder))
    if is_main_process():
        record = provenance(config, data.shards.manifest, data, objective, ancestor)
        save_encoder(config.folder, released, record)
        mirror.done(config.folder)


def leaves_before_start(config: PretrainConfig, world: int, main: bool, beat: Heartbeat) -> bool:
    """Whether to leave after a signal that came before training: one process, or SLURM takes the job back.

    The ranks cannot agree yet, and a rank that left alone would keep the others waiting; where this is False,
    they agree before their first step.
    """
    if main and config.trainer.requeue and preempt.requeue():
        beat.requeued()
        return True
    if world == 1:
        log.warning("asked to stop before the first step; continue with resume=true")
    return world == 1


def fit(
    trainer: pl.Trainer,
    module: PretrainModule,
    data: Stream,
    folder: Path,
    checkpoint: Path | None,
    beat: Heartbeat,
    stop: preempt.StopSignal,
    mirror: Mirror,
    progress: Callable[[int, int, str], None] | None,
) -> bool:
    """Train from `checkpoint` on. True: the last step is done; False: the run was asked to stop.

    Raises:
        Rollback: on all ranks, when the run has to go on from its newest checkpoint.
    """
    config, main = module.config, is_main_process()
    saver = Checkpointing(folder, config.trainer, total_steps=config.steps, signal=stop)
    start = step_of(checkpoint)
    with Recorder(config, folder, main=main, start=start, mirror=mirror, progress=progress) as recorder:
        recorder.probe = probe(config, module.objective)
        if main:
            recorder.panels = panels(config, folder, data)
        trainer.callbacks += [beat, recorder, saver]  # type: ignore[attr-defined]
        if main:
            seconds = 60 * config.tracking.stall_minutes
            trainer.callbacks.append(StallWatch(seconds, recorder.stalled))  # type: ignore[attr-defined]
        if main and config.trainer.profile_steps > 0:
            profiling = Profiling(folder, config.trainer.profile_steps, recorder.speed)
            trainer.callbacks.insert(0, profiling)  # type: ignore[attr-defined]
        if config.trainer.compile and config.trainer.strategy != "fsdp2":  # which compiles its own units
            compile_in_place(module.encoder, module.objective)
        loaders = PretrainData(
            config.data, steps=config.steps, accumulate=config.trainer.accumulate, folder=folder
        )
        try:
            with watched(config.trainer.timeout_minutes):
                trainer.fit(module, datamodule=loaders, ckpt_path=checkpoint, weights_only=True)
        finally:
            loaders.teardown("fit")  # Lightning does not after an exception
    return not saver.preempted


def open_data(config: PretrainConfig) -> Stream:
    """The stream of `data.shards`, opened before a run folder exists: what is wrong with it is known early.

    Raises:
        ConfigError: no shards named, or a source that they do not hold.
        ShardError: no finished build there.
    """
    if not config.data.shards:
        raise ConfigError("data.shards is empty: name the folder that `medloom shards build` wrote")
    return Stream(config.data)


def resolve_steps(config: PretrainConfig, data: Stream) -> None:
    """Turn `trainer.epochs` into `trainer.steps`, the only measure of a run from here on."""
    epochs = config.trainer.epochs
    if epochs is None:
        return
    config.trainer.steps, config.trainer.epochs = data.steps_for(epochs), None
    log.info("%g epochs (%s) = %d steps", epochs, config.data.epoch, config.steps)


def resolve_classes(config: PretrainConfig, data: Stream) -> None:
    """Tell an objective that learns labels which classes the shards hold."""
    if data.targets is not None and "classes" in config.objective:
        masks = config.objective.get("target") == "masks"
        config.objective["classes"] = data.targets.structures if masks else data.targets.classes


def log_arithmetic(config: PretrainConfig, world: int, objective: Objective) -> None:
    """Say once what one step is made of; refuse a batch that does not divide or is too small."""
    plan = StepPlan.of(config.data)
    steps, samples = plan.steps_by_class(config.steps), plan.consumed(config.steps)
    for batch, part, n, total in zip(
        plan.batch_sizes, per_rank_batch(config, world), steps, samples, strict=True
    ):
        parts = f"{world} ranks × {config.trainer.accumulate} micro-batches × {part} samples"
        log.info("global batch %d = %s; %d steps = %d samples", batch, parts, n, total)
        if part < objective.least_batch:
            raise ConfigError(
                f"data.batch_size {batch} leaves {part} samples for a micro-batch of a rank; objective "
                f"{config.objective['name']} compares images with each other and needs "
                f"{objective.least_batch}: use a larger batch, fewer ranks or a smaller trainer.accumulate"
            )


def compile_in_place(encoder: Encoder, objective: Objective) -> None:
    """Compile the encoder and its teachers. torch.compile(encoder) would put a prefix before every key."""
    for module in (encoder, *(m for m in objective.modules() if isinstance(m, Encoder))):
        module.compile()


def build(config: PretrainConfig) -> tuple[Encoder, Objective, dict[str, Any] | None]:
    """Encoder and objective with weights that depend on `seed` alone, or on `init_from`.

    Returns:
        encoder, objective, and the encoder.json of `init_from` (None without one).
    """
    record: dict[str, Any] | None = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_key(config.seed, "weights") >> 1)
        if config.init_from is None:
            encoder = build_encoder(config.encoder)
        elif config.encoder:
            encoder = build_encoder(config.encoder)
            report = load_into(encoder, config.init_from)
            record = report.record
            log.info("%s", report)
        else:
            encoder, report = load_encoder(config.init_from, in_channels=config.data.in_channels)
            config.encoder, record = to_dict(encoder.config), report.record
            log.info("%s", report)
        for part in config.data.each():
            if part.ndim not in encoder.axes:
                where = "data.classes have a class with ndim" if config.data.classes else "data.ndim is"
                raise ConfigError(
                    f"the encoder is {encoder.ndim}D, {where} {part.ndim}: choose encoder.name or the data "
                    "accordingly"
                )
        kind, section = polymorphic(config.objective, OBJECTIVES, "objective")
        objective = kind(section, encoder)
        taken = None if config.init_from is None else continue_objective(objective, config.init_from)
        if taken is not None:
            log.info(taken)
        for part in config.data.each():
            for size in objective.sizes(part.crop):
                encoder.grid(size)  # refuses a size that patches do not tile
    encoder.recompute = config.trainer.recompute
    return encoder, objective, record or None


def probe(
    config: PretrainConfig, objective: Objective
) -> Callable[[PretrainModule], dict[str, float]] | None:
    """The probes, when they are wanted; how often is written into the configuration."""
    if config.probe.every_steps == 0:
        return None
    probes = Probe(config.probe, config.data, largest(config, objective))
    config.probe.every_steps = cadence(config.probe, probes.images, config.steps, config.data.step_samples)
    if config.probe.every_steps == 0:
        return None
    return lambda module: probes(
        module.objective.released(module.encoder), module.device,
        module.trainer.precision_plugin.forward_context,
    )  # fmt: skip


def panels(
    config: PretrainConfig, folder: Path, data: Stream
) -> Callable[[PretrainModule, int], dict[str, Path]]:
    """Pictures of the same few training images (of the first class), read when the first panel is due."""
    held: list[dict[str, Any]] = []

    def draw(module: PretrainModule, step: int) -> dict[str, Path]:
        if not held:
            several = len(data.classes)
            pool = [data[position * several] for position in range(8 * config.panels.samples)]
            held.extend(pool[i] for i in varied(pool, config.panels.samples))
        batch = on_device(collate(held), module.device)
        return draw_panels(
            folder / "panels",
            step,
            module.prepared(batch, step),
            module.encoder,
            module.objective,
            mean=batch["mean"],
            std=batch["std"],
        )

    return draw


def make_trainer(config: PretrainConfig, launch: Launch) -> pl.Trainer:
    """Lightning's Trainer with everything switched off that medloom does itself."""
    trainer = config.trainer
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning advises more workers, a logger and a val loop; none of it applies here.
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    kind = precision(trainer.precision, trainer.accelerator)
    built = pl.Trainer(
        accelerator=trainer.accelerator, devices=launch.devices, num_nodes=launch.num_nodes,
        strategy=build_strategy(trainer, launch, kind), plugins=[*launch.plugins, CheckpointFiles()],
        precision=kind,  # type: ignore[arg-type]
        max_steps=config.steps, max_epochs=-1,
        accumulate_grad_batches=1 if trainer.accumulate == "auto" else trainer.accumulate,
        use_distributed_sampler=False, num_sanity_val_steps=0, limit_val_batches=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=config.folder,
    )  # fmt: skip
    give_up_after(trainer.timeout_minutes, built)
    settle_accumulate(config, launch, built)
    # Lightning's handler of SIGTERM talks to the other ranks inside the handler; ours is in fault_tolerance.
    built._signal_connector.register_signal_handlers = lambda: None
    return built


def largest(config: PretrainConfig, objective: Objective) -> list[tuple[int, ...]]:
    """The largest size that meets the encoder, of each shape class: views are smaller than what is loaded."""
    return [max(objective.sizes(part.crop), key=math.prod) for part in config.data.each()]


def provenance(
    config: PretrainConfig,
    manifest: Manifest,
    data: Stream,
    objective: Objective,
    ancestor: dict[str, Any] | None,
) -> dict[str, Any]:
    """What encoder.json says about where the weights come from, beside what the encoder says of itself."""
    sources = [
        {"id": s.id, "dataset": s.dataset, "licence": s.licence, "count": s.count, "modalities": s.modalities}
        for s in data.sources
    ]
    batches = list(data.plan.batch_sizes)
    training = {
        "manifest": manifest.hash,
        "collection": manifest.name,
        "salt_fingerprint": manifest.salt_fingerprint,
        "sources": sources,
        "objective": dict(config.objective),
        "steps": config.steps,
        "samples": data.plan.samples(config.steps),
        "batch_size": batches[0] if len(batches) == 1 else batches,
        "seeds": {"run": config.seed, "data": config.data.seed},
        "init_from": None if config.init_from is None else Path(config.init_from).name,
    }
    if ancestor is not None:  # what the initial weights were trained on counts as seen, too
        kept = ("sha256", "licence", "training", "held_out")
        training["ancestor"] = {key: ancestor.get(key) for key in kept}
    return {
        "input": input_contract(config.data, largest(config, objective), data.shards, data.sources),
        "training": training,
        "held_out": asdict(manifest.held_out),
    }
