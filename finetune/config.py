"""Configuration of a fine-tuning run: one task record, one encoder, one protocol, its baselines.

The choice: every arm of a run (pretrained and from scratch) reads the same cases in the same order for the
same number of steps; only the initial weights and the learning rates differ. Rates have separate defaults
for pretrained and random encoders, because one rate for both would favour one arm: fine-tuning wants about
a third of the rate of scratch training for transformers, and layer-wise decay (arXiv 2412.17041).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from ..data.config import find_config, read_yaml, structured
from ..data.errors import ConfigError, nearest
from ..pretrain.schedules import RATES
from ..pretrain.tracking.config import TrackingConfig
from .record import TaskRecord

PROTOCOLS = (
    "full", "sawtooth", "unfreeze", "lora", "linear", "attentive", "logistic", "knn", "frozen"
)  # see protocols/  # fmt: skip
# Rates of the linear grid at a batch of 256, as DINOv2's (arXiv 2304.07193, appendix B.3).
_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
ARMS = ("pretrained", "scratch", "random")
DIMS = ("slices", "inflate")
DECODERS = ("unet", "unetr", "linear")  # see decoders.py
DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass
class OptimConfig:
    """AdamW; rates are for the whole (global) batch and are not rescaled."""

    # Decoder or head, in every arm; None: 5e-3 in segmentation, 1e-3 in classification. Measured on the
    # hippocampus, 300 steps from scratch: validation Dice 0.855 with 5e-3 and 0.827 with 1e-3 (one seed).
    head_lr: float | None = None
    encoder_lr: float = 2e-4  # pretrained encoder: rate of the last block, before layer-wise decay
    # Encoder from random weights, every block alike; None: 2e-3 for convolutions in segmentation, else 5e-4.
    # Measured on the hippocampus, 120 steps: Dice 0.782 with 2e-3 and 0.761 with 5e-4 (one seed).
    scratch_lr: float | None = None
    layer_decay: float = 0.75  # factor per block from the last to the first, pretrained encoder only
    weight_decay: float = 0.05  # not on norms, biases and embeddings
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    warmup_fraction: float = 0.1  # of the steps, linear; then `decay` to zero
    decay: str = "cosine"  # cosine | poly (nnU-Net's power of 0.9) | constant
    freeze_fraction: float = 0.1  # of the steps, the encoder frozen; protocols sawtooth and unfreeze
    ema: float = 0.0  # decay of an average of the weights (0.999), validated and kept for them; 0: none
    clip: float = 1.0  # norm of the gradient
    label_smoothing: float = 0.1  # classification


@dataclass
class AugmentConfig:
    """Augmentation on the device, the same in every arm. Angles in degrees, probabilities per sample."""

    affine: float = 0.5  # probability of rotation and scale
    rotate: float = 15.0  # largest angle, about every axis in 3D
    scale: list[float] = field(default_factory=lambda: [0.85, 1.2])
    intensity: float = 0.5  # probability of contrast, brightness and gamma, each drawn separately
    noise: float = 0.15  # probability of Gaussian noise, sd up to 0.15 of the normalised intensity
    crop_scale: list[float] = field(default_factory=lambda: [0.5, 1.0])  # 2D classification: area of the crop


@dataclass
class LoraConfig:
    """Low-rank adapters of the attention layers (protocol lora, arXiv 2106.09685)."""

    rank: int = 8
    alpha: float = 16.0  # what the adapters add is scaled by alpha / rank
    dropout: float = 0.0  # on what goes into an adapter


@dataclass
class ProbeConfig:
    """Probes of frozen features."""

    # knn: numbers of neighbours, of which validation chooses
    neighbours: list[int] = field(default_factory=lambda: [10, 20])
    temperature: float = 0.07  # knn: a neighbour's vote is exp(cosine / temperature)
    # linear on images: peak rates of SGD at a batch of 256, of which validation chooses
    rates: list[float] = field(default_factory=lambda: [*_RATES])
    attentive_rates: list[float] = field(default_factory=lambda: [3e-4, 1e-3, 3e-3])  # of AdamW, likewise
    heads: int = 8  # attentive: heads of the cross-attention, fewer where the width does not divide


@dataclass
class HeadConfig:
    """Size of what is put on the encoder."""

    width: int = 16  # segmentation: channels at full resolution; doubled per level up to `most`
    most: int = 128  # largest number of channels of the decoder
    decoder: str = "unet"  # segmentation: unet | unetr (plain transformers) | linear; see decoders.py
    deep_supervision: int = 0  # segmentation: coarser outputs that are trained too, each with half the weight
    dropout: float = 0.1  # classification: before the last layer

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            hint = nearest(self.decoder, DECODERS)
            raise ConfigError(f"head.decoder: unknown decoder {self.decoder!r}{hint}")


@dataclass
class DetectionConfig:
    """What RetinaNet puts on the encoder; MONAI's lung nodule detection but for the width."""

    width: int = 64  # channels of the feature pyramid and of the heads, a multiple of 8
    levels: int = 3  # maps of the pyramid at most
    anchors: int = 3  # anchor shapes a cell at most
    candidates: int = 4  # cells of each map that may become a box (ATSS)
    places: int = 128  # of an image, 3 in 10 of objects at most, the rest hard background
    least_score: float = 0.02  # boxes below are dropped
    nms: float = 0.3  # IoU with a better box of its class above which a box is dropped
    most: int = 100  # boxes an image at most


@dataclass
class FinetuneConfig:
    """A fine-tuning run. Numbers are global unless they say otherwise."""

    task: TaskRecord = MISSING
    encoder: str = (
        MISSING  # run folder, encoder folder, .safetensors, .ckpt, timm:NAME, monai:NAME@FILE, random:ANY
    )
    out: str | None = None  # run folder; None: runs/<task>-<protocol>, and -fold<fold> behind it
    root: str | None = None  # folder of the source; None: MEDLOOM_DATA, then the record's own folder
    cache: str | None = None  # where task shards are kept; None: $XDG_CACHE_HOME/medloom/tasks
    features: str | None = None  # folder of the cache of frozen features (features.py); None: none is kept
    features_gib: float = 20.0  # bound of that folder; what was used longest ago goes
    dims: str | None = None  # a 2D encoder on volumes: slices | inflate (see slices.py); None: refused
    protocol: str = "full"  # see `medloom finetune --help`
    baseline: bool = True  # train the same network from random weights beside the encoder
    arm: str | None = None  # pretrained, scratch or random: this alone (a grid's cells); None: see baseline
    seed: int = 0
    fraction: float = 1.0  # share of the training subjects that is used; smaller shares are nested in larger
    shots: int | None = None  # instead: training subjects a class (in all, where there are no classes)
    draw: int = 0  # which subjects these are; the same for every encoder, protocol and seed
    fold: int | None = None  # this of `folds` parts of train and val (by patient) validates; test stays
    folds: int = 5
    steps: int = 500  # optimiser steps of every arm
    batch_size: int | None = None  # global; None: planned (segmentation) or 32 (classification)
    patch: list[int] | None = None  # overrides the task record and the plan
    image_size: int | None = None  # 2D classification: None: the encoder's own training crop
    memory_gib: float | None = None  # budget of activations; None: half of what is free
    validations: int = 5  # how often the validation split is scored, evenly over the run
    foreground: float = 1 / 3  # share of the crops that are centred on a structure, or hold a drawn box
    device: str = "auto"
    workers: int | None = None  # loader processes; None: 0 on CPU, 8 with an accelerator
    checkpoint_minutes: float = 2.0
    tracking: TrackingConfig = field(default_factory=lambda: TrackingConfig(tracker="none"))
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        named = (
            ("protocol", self.protocol, PROTOCOLS), ("device", self.device, DEVICES),
            ("dims", self.dims, DIMS),
        )  # fmt: skip
        for key, value, known in named:
            if value is not None and value not in known:
                raise ConfigError(f"{key}: unknown {key} {value!r}{nearest(value, known)}")
        if self.arm is not None and self.arm not in ARMS:
            raise ConfigError(f"arm: unknown arm {self.arm!r}{nearest(self.arm, ARMS)}")
        if self.steps < 1 or self.validations < 1:
            raise ConfigError(f"steps {self.steps}, validations {self.validations}: give at least 1 of each")
        if self.optim.decay not in RATES:
            raise ConfigError(
                f"optim.decay: unknown schedule {self.optim.decay!r}{nearest(self.optim.decay, RATES)}"
            )
        for key, share in (
            ("optim.freeze_fraction", self.optim.freeze_fraction),
            ("optim.ema", self.optim.ema),
        ):
            if not 0 <= share < 1:
                raise ConfigError(f"{key}: {share}: give a number in [0, 1)")
        self.tracking.check()
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"fraction: {self.fraction}: a share of the training subjects in (0, 1]")
        if self.shots is not None and (self.shots < 1 or self.fraction < 1):
            raise ConfigError(f"shots: {self.shots}: give at least 1, and no fraction beside it")
        if self.draw < 0:
            raise ConfigError(f"draw: {self.draw}: draws count from 0")
        if not 0 <= self.foreground <= 1:
            raise ConfigError(f"foreground: {self.foreground}: a probability in [0, 1]")
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch_size: {self.batch_size}: give at least 1")

    @property
    def folder(self) -> Path:
        """The run folder."""
        fold = "" if self.fold is None else f"-fold{self.fold}"
        return Path(self.out) if self.out else Path("runs") / f"{self.task.name}-{self.protocol}{fold}"


def load_config(task: Path | str, dotlist: Sequence[str] = ()) -> FinetuneConfig:
    """Read a task record, or the `config.yaml` of a run, and merge the command line over it.

    Args:
        task: a YAML file, or the name of a shipped record (`realdata-busi`; `_` and `-` are the same). A
            record may carry `defaults`: keys of this configuration that suit it (steps, patch).
        dotlist: `key=value` items; `task.patch=[32,32,32]` reaches into the record.

    Raises:
        ConfigError: no such task (with near names), unknown key, wrong type, missing `encoder`.
    """
    path = find_config("tasks", task)
    values = read_yaml(path)
    if "task" in values:
        config = structured(FinetuneConfig, values, list(dotlist), where=str(path))
    else:
        defaults = values.pop("defaults", None) or {}
        layers = ({"root": _default_root(path)}, {"task": values}, defaults)
        config = structured(FinetuneConfig, *layers, list(dotlist), where=str(path))
    # Absolute, so that a run can be continued and evaluated from another folder.
    config.root = str(Path(config.root or ".").expanduser().absolute())
    config.encoder = _absolute(config.encoder)
    return config


def _absolute(encoder: str) -> str:
    """An encoder that names something on this disk, with its whole path; `random:` is kept in front."""
    prefix = "random:" if encoder.startswith("random:") else ""
    if encoder.removeprefix(prefix).startswith("monai:"):
        prefix += encoder.removeprefix(prefix).partition("@")[0] + "@"
    path = Path(encoder.removeprefix(prefix)).expanduser()
    return f"{prefix}{path.absolute()}" if path.exists() else encoder


def _default_root(path: Path) -> str:
    import os

    return os.environ.get("MEDLOOM_DATA") or str(path.resolve().parent)
