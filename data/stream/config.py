"""What a training run reads: one typed section, checked when it is built, every message with its mend.

A run of several shape classes lists them under `classes`; what a class leaves out it inherits from the
section, so that `each` gives one complete configuration a class, and the section itself without classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from ..errors import ConfigError, nearest

MODES = ("random", "sequential")
ACCESS = ("auto", "cache", "range")
EPOCHS = ("steps", "strict", "cover")


@dataclass(kw_only=True)
class ShapeClass:
    """One shape of a run that mixes several. None inherits from the section."""

    share: float = 1.0  # of the optimiser steps, against the other classes
    ndim: int | None = None
    crop: list[int] | None = None
    batch_size: int | None = None
    channels: int | None = None  # 1, or what the other classes have: grey is repeated on the device
    crop_scale: list[float] | None = None
    aspect: list[float] | None = None
    foreground: float | None = None
    zoom: list[float] | None = None
    snap: int | None = None
    crops_per_sample: int | None = None
    alpha: float | None = None
    window: int | None = None
    weights: dict[str, float] | None = None
    sources: list[str] | None = None
    exclude: list[str] | None = None


@dataclass(kw_only=True)
class StreamConfig:
    """What a training run reads. Numbers are global unless they say otherwise."""

    shards: str = ""  # folder with manifest.json: a path, or a URL (s3://, https://, ...; docs/remote.md)
    mode: str = "random"  # random: any sample at any time | sequential: tars from end to end (docs/remote.md)
    buffer: int | None = None  # samples that a worker mixes in sequential mode; None: 1000, in 3D 16
    access: str = "auto"  # of a URL: cache (whole shards to the local disk) | range (no disk) | auto
    cache: str = ""  # folder of the cache; empty: MEDLOOM_CACHE, or the user's cache folder
    cache_gb: float = 100.0  # its size limit, 10^9 bytes; decides the default `window` of a URL
    ndim: int = 2  # 2 reads the images, 3 the volumes; one step has one shape class on all ranks
    crop: list[int] = field(default_factory=lambda: [224, 224])  # output size in pixels, (H, W) or (D, H, W)
    batch_size: int = 256  # global: samples an optimiser step, over all ranks and accumulation
    channels: int | None = (
        None  # channels the encoder sees; None: 3 for images, 1 for volumes (`in_channels`)
    )
    crop_scale: list[float] = field(default_factory=lambda: [0.4, 1.0])  # 2D: share of the image's area
    aspect: list[float] = field(default_factory=lambda: [0.75, 4 / 3])  # 2D: width / height of the box
    foreground: float = 0.5  # 3D: share of the crops that are centred on a brick with tissue
    zoom: list[float] = field(
        default_factory=list
    )  # 3D: a crop shows `crop` times a factor drawn here, log-uniform, and is resampled to `crop` on the
    # device: [0.5, 2.0] gives crops of half to twice the stored spacing; empty: the stored spacing
    snap: int = 32  # 3D: origins are multiples of this many voxels where the volume is larger; 1: any origin
    crops_per_sample: int = 1  # consecutive positions that crop the same sample: one metadata read for all
    epoch: str = "steps"  # steps: sources repeat as the mix demands | strict: each sample once | cover: each
    # sample at least once, small sources repeat
    alpha: float = 0.5  # a source of N samples is drawn with probability ~ N^alpha; 1: by size, 0: all alike
    window: int | None = None  # shards shuffled together; None: all of a source (right for local disks)
    weights: dict[str, float] = field(
        default_factory=dict
    )  # factor on the probability of a source or dataset
    seed: int = 0  # of the order, the crops and the views
    workers: int = 2  # loader processes a rank; 0 reads in the training process
    prefetch: int = 2  # batches a worker reads ahead
    sources: list[str] = field(default_factory=list)  # dataset or source ids to read; empty: all
    exclude: list[str] = field(default_factory=list)  # dataset or source ids to leave out
    labels: str = ""  # key of the labels to learn (`class`); empty: none are read. docs/loader.md
    masks: bool = False  # read the label maps, too
    labels_shared: bool = False  # equal names of classes and structures mean the same in all datasets
    failure_budget: int = 100  # unreadable samples of one source, in the whole run, before it stops
    classes: list[ShapeClass] = field(default_factory=list)  # shapes that the run mixes; empty: this one

    def each(self) -> list[StreamConfig]:
        """One complete configuration a shape class; the section itself where it lists no `classes`."""
        if not self.classes:
            return [self]
        own = [{f.name: getattr(c, f.name) for f in fields(c) if f.name != "share"} for c in self.classes]
        parts = []
        for given in ({k: v for k, v in o.items() if v is not None} for o in own):
            part = replace(self, classes=[], **given)
            parts.append(part if part.ndim == 3 or "zoom" in given else replace(part, zoom=[]))
        return parts

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the steps by class, any sum."""
        return tuple(c.share for c in self.classes) or (1.0,)

    @property
    def step_samples(self) -> float:
        """Samples an optimiser step, on average over the classes."""
        sizes = [part.batch_size for part in self.each()]
        return sum(n * s for n, s in zip(sizes, self.shares, strict=True)) / sum(self.shares)

    @property
    def in_channels(self) -> int:
        """Channels of the image that the encoder sees: `channels`, or 3 for images and 1 for volumes."""
        if self.classes:
            return max(part.in_channels for part in self.each())
        return self.channels if self.channels is not None else (3 if self.ndim == 2 else 1)

    def check(self) -> None:
        """Refuse values that contradict each other. Raises ConfigError naming the key and the mend."""
        if self.classes:
            self._check_classes()
            return
        self._check_crops()
        for name, least in (
            ("batch_size", 1),
            ("snap", 1),
            ("crops_per_sample", 1),
            ("workers", 0),
            ("prefetch", 1),
            ("failure_budget", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"data.{name} is {getattr(self, name)}: it must be at least {least}")
        if self.mode not in MODES:
            raise ConfigError(f"data.mode is {self.mode!r}{nearest(self.mode, MODES)}")
        if self.buffer is not None and self.buffer < 1:
            raise ConfigError(f"data.buffer is {self.buffer}: write at least 1, or leave it out")
        if self.access not in ACCESS:
            raise ConfigError(f"data.access is {self.access!r}{nearest(self.access, ACCESS)}")
        if not self.cache_gb > 0:
            raise ConfigError(f"data.cache_gb is {self.cache_gb}: it must be above 0")
        if self.epoch not in EPOCHS:
            raise ConfigError(f"data.epoch is {self.epoch!r}{nearest(self.epoch, EPOCHS)}")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(
                f"data.alpha is {self.alpha}: it lies between 0 (all sources alike) and 1 (by size)"
            )
        if self.channels is not None and self.channels < 1:
            raise ConfigError(f"data.channels is {self.channels}: write at least 1, or leave it out")
        if self.window is not None and self.window < 1:
            raise ConfigError(
                f"data.window is {self.window}: write at least 1 shard, or leave it out for all"
            )

    def _check_classes(self) -> None:
        for number, (shape, part) in enumerate(zip(self.classes, self.each(), strict=True)):
            if not shape.share > 0:
                raise ConfigError(
                    f"data.classes[{number}].share is {shape.share}: above 0, or leave the class out"
                )
            try:
                part.check()
            except ConfigError as error:
                raise ConfigError(f"data.classes[{number}]: {error}") from error
            if part.in_channels not in (1, self.in_channels):
                raise ConfigError(
                    f"data.classes[{number}]: {part.in_channels} channels, another class has "
                    f"{self.in_channels}: one encoder sees 1 or the same number, set its channels"
                )

    def _check_crops(self) -> None:
        if self.ndim not in (2, 3):
            raise ConfigError(f"data.ndim is {self.ndim}: write 2 (images) or 3 (volumes)")
        if len(self.crop) != self.ndim or min(self.crop) < 1:
            example = "[224, 224]" if self.ndim == 2 else "[96, 96, 96]"
            raise ConfigError(f"data.crop {list(self.crop)} is no size in {self.ndim}D: write e.g. {example}")
        low, high = self.crop_scale if len(self.crop_scale) == 2 else (0.0, 0.0)
        if not 0 < low <= high <= 1:
            raise ConfigError(
                f"data.crop_scale {list(self.crop_scale)}: write two shares, 0 < low <= high <= 1"
            )
        low, high = self.aspect if len(self.aspect) == 2 else (0.0, 0.0)
        if not 0 < low <= high:
            raise ConfigError(f"data.aspect {list(self.aspect)}: write two ratios with 0 < low <= high")
        if self.zoom and (len(self.zoom) != 2 or not 0 < self.zoom[0] <= self.zoom[1]):
            raise ConfigError(f"data.zoom {list(self.zoom)}: write two factors, 0 < low <= high, or []")
        if self.zoom and self.ndim == 2:
            raise ConfigError("data.zoom is for volumes: pictures are zoomed by data.crop_scale")
        if not 0 <= self.foreground <= 1:
            raise ConfigError(f"data.foreground is {self.foreground}: it is a share, 0 to 1")
