"""The configuration of a pretraining run, and the rules between its fields.

Time is counted in optimiser steps; a run may ask for epochs instead, which the shards turn into steps once,
when it starts (`run.resolve_steps`). The batch size is global (over all ranks and
accumulation); what one rank takes is derived and refused when it does not divide. `data.seed` follows `seed`
unless it is set. The sections `encoder` and `objective` carry a `name` and the keys of that class's `Config`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.config import find_config, polymorphic, read_yaml, structured, to_dict
from ..data.errors import ConfigError, nearest
from ..data.stream.config import StreamConfig
from .schedules import RATES
from .tracking.config import TrackingConfig

ON_NONFINITE = ("stop", "skip", "rollback")
ON_SPIKE = ("none", *ON_NONFINITE)
STEPS = 100_000  # of a run that says neither steps nor epochs
PROBE_SCORES = ("knn", "linear", "dense")

# What a resumed run may change: where and how it runs and what it reports, never what it computes.
FREE_ON_RESUME = (
    "out", "resume", "name", "data.shards", "data.access", "data.cache", "data.cache_gb", "data.workers",
    "data.prefetch", "data.failure_budget",
    "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.accumulate",
    "trainer.shard_size", "trainer.memory_gb", "trainer.profile_steps",
    "trainer.checkpoint_split", "optim.fused",
    "trainer.checkpoint_every_steps", "trainer.checkpoint_every_minutes", "trainer.checkpoint_async",
    "trainer.keep_every_steps", "trainer.keep_last", "trainer.time_limit_minutes", "trainer.grace_seconds",
    "trainer.on_nonfinite", "trainer.on_spike", "trainer.spike_factor", "trainer.most_bad_steps",
    "trainer.requeue", "trainer.timeout_minutes", "tracking", "panels", "probe",
)  # fmt: skip


@dataclass(kw_only=True)
class OptimConfig:
    """Optimiser and schedules: linear warm-up, then cosine, unless said otherwise."""

    name: str = "adamw"  # adamw | sgd (Nesterov)
    base_lr: float = 1.5e-4  # learning rate at a global batch of 256
    scaling: str = "linear"  # how it grows with the batch: linear | sqrt | none
    schedule: str = "cosine"  # after the warm-up: cosine | poly (power 0.9) | constant
    min_lr: float = 0.0  # learning rate at the last step, absolute
    warmup_fraction: float = 0.05  # share of the steps
    weight_decay: float = 0.05  # not on biases, norms, position embeddings and tokens
    weight_decay_end: float | None = None  # at the last step, by a cosine; null: constant
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])  # of AdamW
    momentum: float = 0.99  # of SGD
    layer_decay: float = 1.0  # factor on the rate for each layer further from the output; 1: none
    stem_scale: float = 1.0  # factor on the rate of the encoder's first layer
    clip: float | None = 1.0  # largest global gradient norm; null: never clip
    fused: Any = "auto"  # one kernel an update: auto (where torch has one) | true | false


@dataclass(kw_only=True)
class TrainerConfig:
    """How long, on what, and how often to log and to save."""

    steps: int | None = None  # optimiser steps of the whole run; null: 100,000, or what `epochs` makes
    epochs: float | None = None  # instead of steps; what an epoch is, data.epoch says: strict or cover
    accelerator: str = "auto"  # auto | cpu | gpu
    devices: Any = (
        "auto"  # per node: auto | a number | a list of indices; torchrun and srun decide themselves
    )
    num_nodes: int = 1
    strategy: str = "auto"  # auto: ddp when there are several ranks | ddp | fsdp2: weights split over them
    shard_size: int | None = None  # fsdp2: ranks that share one copy of the weights; null: all of them
    precision: str = "auto"  # auto: bf16-mixed on GPUs that have it, else 32-true
    accumulate: Any = 1  # micro-batches a step of the same global batch | auto: the fewest that memory holds
    memory_gb: float | None = None  # GiB a rank for accumulate=auto; null: 85 % of the GPU's, 80 % of RAM
    compile: bool = False  # torch.compile of the encoder (and its teacher), in place
    recompute: bool = False  # gradient checkpointing: a third more arithmetic for a fraction of the memory
    log_every: int = 20  # steps
    profile_steps: int = 0  # to time and to trace after the first ones: RUN/profile; 0: none
    checkpoint_every_steps: int = 1000
    checkpoint_every_minutes: float = 15.0  # also by the clock: what a killed job can lose
    checkpoint_async: bool = True  # written beside the next steps; costs the state once more in host memory
    checkpoint_split: bool = False  # fsdp2: each rank writes its part into RUN/split; the last step is whole
    keep_every_steps: int | None = None  # checkpoints of these steps stay as step-N.ckpt; null: none
    keep_last: int = 2  # newest checkpoints that stay: last.ckpt, previous.ckpt, and beyond 2 step-N.ckpt
    time_limit_minutes: float | None = None  # stop and save before so long after the start; null: SLURM's
    on_nonfinite: str = "stop"  # a loss or gradient that is not finite: stop | skip | rollback
    on_spike: str = "none"  # a gradient norm above spike_factor × its median: none | skip | rollback | stop
    spike_factor: float = 10.0  # × the median norm of the last 100 good steps
    most_bad_steps: int = 20  # skipped or left out after a rollback, in the whole run; more stop it
    grace_seconds: float = 30.0  # time between SIGTERM and SIGKILL on the cluster
    requeue: bool = True  # under SLURM, ask for the job to be queued again after a preemption
    timeout_minutes: float = 30.0  # ranks that wait for another so long end with an error


@dataclass(kw_only=True)
class ProbeConfig:
    """Probes on labelled shards while training; a declared test split is never read. docs/diagnostics.md."""

    every_steps: int | None = None  # null: as seldom as costs about 1 % of the run; 0: never
    scores: list[str] = field(default_factory=lambda: ["knn", "linear", "dense"])  # docs/diagnostics.md
    shards: str = ""  # folder of labelled shards; empty: the labelled sources among data.shards
    label: str = "class"  # key in the labels of a sample
    k: int = 10  # neighbours
    max_samples: int = 1000  # per source, train and validation together
    dense_samples: int = 200  # with label maps, likewise; of volumes: crops


@dataclass(kw_only=True)
class PanelConfig:
    """Pictures: reconstructions and the principal components of the tokens as colours."""

    every_steps: int = 0  # 0: only at the end of the run
    samples: int = 6  # images a panel, as many modalities as there are


@dataclass(kw_only=True)
class PretrainConfig:
    """One pretraining run."""

    name: str = "pretrain"
    out: str = ""  # run folder; empty: runs/<name>
    seed: int = 0  # weights, and everything drawn in the run
    init_from: str | None = None  # encoder to start from: run, folder, .safetensors, .ckpt, timm:NAME
    resume: bool = False  # continue the run in `out`, or start it when there is nothing yet
    data: StreamConfig = field(default_factory=StreamConfig)
    encoder: dict[str, Any] = field(default_factory=dict)  # empty: vit or vit3d, or what init_from is
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "mae"})
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    panels: PanelConfig = field(default_factory=PanelConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run, once epochs are resolved."""
        if self.trainer.steps is None:
            raise ConfigError(f"trainer.epochs={self.trainer.epochs} is not resolved: open the shards first")
        return self.trainer.steps

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.out or f"runs/{self.name}")


def load_config(path_or_name: str | Path, dotlist: list[str] | tuple[str, ...] = ()) -> PretrainConfig:
    """Read a recipe (a path, or the name of a shipped one such as `phantom-mae-2d`) and apply `key=value`s.

    Raises:
        ConfigError: no such file, unknown key, wrong type, values that contradict each other.
    """
    layers = recipe_layers(find_config("pretrain", path_or_name))
    return complete(structured(PretrainConfig, *layers, list(dotlist), where=str(path_or_name)))


def recipe_layers(path: Path) -> list[dict[str, Any]]:
    """The mappings that a recipe is made of: those it `extends`, in their order, and itself last.

    `extends` names one file or several, beside the recipe or shipped in configs/pretrain/sizes. A section
    with another `name` than the one below replaces it as a whole: its keys are those of another class.

    Raises:
        ConfigError: as `load_config`; a file to extend that extends another.
    """
    values = read_yaml(path)
    bases = values.pop("extends", None) or []
    layers = [_below(str(base), path) for base in ([bases] if isinstance(bases, str) else bases)]
    layers.append(values)
    for section in ("encoder", "objective"):
        chosen = None
        for layer in reversed(layers):
            name = (layer.get(section) or {}).get("name")
            chosen = chosen or name
            if name not in (None, chosen):
                layer.pop(section)
    return layers


def _below(base: str, recipe: Path) -> dict[str, Any]:
    beside = recipe.parent / base
    found = beside if beside.is_file() else find_config("pretrain/sizes", base)
    values = read_yaml(found)
    if "extends" in values:
        raise ConfigError(f"{found}: a file that recipes extend extends no other: write its keys out")
    return values


def complete(config: PretrainConfig) -> PretrainConfig:
    """Fill in the sections that depend on a name, check every rule between fields, return the same object.

    Raises:
        ConfigError: as `load_config`.
    """
    from .objectives import OBJECTIVES

    if config.data.seed == StreamConfig().seed:
        config.data.seed = config.seed
    config.data.check()
    if config.trainer.steps is None and config.trainer.epochs is None:
        config.trainer.steps = STEPS
    if not config.encoder and config.init_from is None:
        config.encoder = {"name": _default_encoder(config)}
    if config.encoder:
        config.encoder = _encoder_section(config)
    _, objective = polymorphic(config.objective, OBJECTIVES, "objective")
    config.objective = {"name": config.objective["name"], **to_dict(objective)}
    _check(config)
    return config


def per_rank_batch(config: PretrainConfig, world: int) -> list[int]:
    """Samples of one micro-batch on one rank, for each shape class.

    Raises:
        ConfigError: the global batch does not divide by ranks × accumulation.
    """
    accumulate = 1 if config.trainer.accumulate == "auto" else config.trainer.accumulate
    parts = world * accumulate
    batches = [part.batch_size for part in config.data.each()]
    for batch in batches:
        if batch % parts:
            below, above = batch // parts * parts, -(-batch // parts) * parts
            near = f"{below} or {above}" if below else f"{above}"
            raise ConfigError(
                f"data.batch_size {batch} does not divide by {world} ranks × {accumulate} "
                f"micro-batches = {parts}: use {near}, or another trainer.accumulate"
            )
    return [batch // parts for batch in batches]


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Keys that decide what a run computes and that changed since its config.yaml: `key: saved -> now`."""
    before, after = _flat(saved), _flat(now)
    fixed = [key for key in sorted(before.keys() | after.keys()) if not _free(key)]
    return [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in fixed
            if before.get(key) != after.get(key)]  # fmt: skip


def _default_encoder(config: PretrainConfig) -> str:
    axes = {part.ndim for part in config.data.each()}
    if len(axes) > 1:
        raise ConfigError("data.classes mix 2D and 3D: name an encoder that takes both in encoder.name")
    return "vit" if axes == {2} else "vit3d"


def _encoder_section(config: PretrainConfig) -> dict[str, Any]:
    """The encoder section with all its defaults; its channels are those of the data."""
    from .encoders import ENCODERS

    section = dict(config.encoder)
    _, encoder = polymorphic(section, ENCODERS, "encoder")
    full = {"name": section["name"], **to_dict(encoder)}
    if "in_channels" in full and "in_channels" not in section:
        full["in_channels"] = config.data.in_channels
    if full.get("in_channels", config.data.in_channels) != config.data.in_channels:
        raise ConfigError(
            f"encoder.in_channels {full['in_channels']} but data gives {config.data.in_channels} channels: "
            "leave encoder.in_channels out, or set data.channels"
        )
    return full


def _check(config: PretrainConfig) -> None:
    from .optim import OPTIMISERS, SCALINGS

    trainer, optim = config.trainer, config.optim
    if trainer.steps is not None and trainer.epochs is not None:
        raise ConfigError(
            f"trainer.steps={trainer.steps} and trainer.epochs={trainer.epochs:g} both say how long the run "
            "is: give one, e.g. trainer.steps=null"
        )
    if trainer.epochs is not None and config.data.epoch == "steps":
        raise ConfigError(
            f"trainer.epochs={trainer.epochs:g} needs an epoch: set data.epoch=strict (each sample once) or "
            "data.epoch=cover (small sources repeat), or give trainer.steps"
        )
    positive = {"trainer.steps": trainer.steps, "trainer.epochs": trainer.epochs,
                "trainer.memory_gb": trainer.memory_gb,
                "trainer.log_every": trainer.log_every, "trainer.num_nodes": trainer.num_nodes,
                "trainer.checkpoint_every_steps": trainer.checkpoint_every_steps,
                "trainer.checkpoint_every_minutes": trainer.checkpoint_every_minutes,
                "trainer.timeout_minutes": trainer.timeout_minutes,
                "trainer.keep_every_steps": trainer.keep_every_steps,
                "optim.base_lr": optim.base_lr, "probe.k": config.probe.k,
                "probe.max_samples": config.probe.max_samples,
                "probe.dense_samples": config.probe.dense_samples,
                "panels.samples": config.panels.samples}  # fmt: skip
    for key, value in positive.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{key} is {value}; it must be above 0")
    _check_safety(trainer)
    if trainer.accumulate != "auto" and (type(trainer.accumulate) is not int or trainer.accumulate < 1):
        raise ConfigError(
            f"trainer.accumulate is {trainer.accumulate!r}; a whole number of micro-batches, or auto"
        )
    if not 0 <= optim.warmup_fraction < 1:
        raise ConfigError(f"optim.warmup_fraction is {optim.warmup_fraction}; a share from 0 to below 1")
    for key, word, known in (
        ("name", optim.name, OPTIMISERS), ("scaling", optim.scaling, tuple(SCALINGS)),
        ("schedule", optim.schedule, RATES),
        ("fused", str(optim.fused).lower(), ("auto", "true", "false")),
    ):  # fmt: skip
        if word not in known:
            raise ConfigError(f"optim.{key} is {word!r}{nearest(word, known)}")
    if str(optim.fused).lower() == "true" and trainer.precision.startswith("16"):
        raise ConfigError(
            f"optim.fused=true with trainer.precision={trainer.precision}: a fused update hides the "
            "loss scale from clipping; use optim.fused=auto, or trainer.precision=bf16-mixed"
        )
    if not 0 < optim.stem_scale <= 1:
        raise ConfigError(f"optim.stem_scale is {optim.stem_scale}; above 0, and 1 for none")
    if not 0 < optim.layer_decay <= 1:
        raise ConfigError(f"optim.layer_decay is {optim.layer_decay}; above 0, and 1 for none")
    if len(optim.betas) != 2:
        raise ConfigError(f"optim.betas has {len(optim.betas)} numbers; AdamW takes 2, e.g. [0.9, 0.95]")
    if optim.clip is not None and optim.clip <= 0:
        raise ConfigError(f"optim.clip is {optim.clip}; above 0, or null for none")
    for score in config.probe.scores:
        if score not in PROBE_SCORES:
            raise ConfigError(f"probe.scores has {score!r}{nearest(score, set(PROBE_SCORES))}")
    config.tracking.check()


def _check_safety(trainer: TrainerConfig) -> None:
    if trainer.keep_last < 2:
        raise ConfigError(
            f"trainer.keep_last is {trainer.keep_last}; at least 2: last.ckpt, and previous.ckpt behind it"
        )
    limit = trainer.time_limit_minutes
    if limit is not None and 60 * limit <= 2 * trainer.grace_seconds:
        raise ConfigError(
            f"trainer.time_limit_minutes {limit:g} leaves no time beside trainer.grace_seconds "
            f"{trainer.grace_seconds:g}: raise the one or lower the other"
        )
    for key, word, known in (
        ("on_nonfinite", trainer.on_nonfinite, ON_NONFINITE), ("on_spike", trainer.on_spike, ON_SPIKE),
    ):  # fmt: skip
        if word not in known:
            raise ConfigError(f"trainer.{key} is {word!r}{nearest(word, known)}")
    if trainer.spike_factor <= 1:
        raise ConfigError(f"trainer.spike_factor is {trainer.spike_factor:g}; above 1, times the median norm")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + str(key)] = value
    return flat


def _free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in FREE_ON_RESUME)
